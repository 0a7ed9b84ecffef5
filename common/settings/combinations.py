"""Settings that are each in range and make no sense together, refused with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from ..errors import ConfideError
from ..methods import METHODS, method_of
from ..tasks import TASKS

if TYPE_CHECKING:
    from . import Settings

# How updates are combined, and how many more than twice the hostile ones each rule needs.
ROBUST = {
    "mean": 0,
    "median": 1,
    "trimmed-mean": 1,
    "krum": 3,
    "multi-krum": 3,
    "geometric-median": 1,
}
_WELL_BELOW = 10  # 1 by so many times the holders is the most that delta may be
_HOSTILE_SHARE = 5  # one in so many, where nobody says how many
Refuse = Callable[[str, str], None]  # a message, and what to do instead
# Settings that change what is learnt: refused beside a task that has no use for them. The others
# are sizes and bounds, which may stand there for whoever tries several tasks.
_OF_CLASSES = ("labels", "class_weights", "class_rates")
_LEARNT_BY = (*_OF_CLASSES, "loss", "word_dropout", "template")


def check_combinations(s: Settings) -> None:
    """Refuse settings that are in range one by one, and make no sense together.

    Raises:
        ConfideError: ``settings.combination``.
    """
    for check in (
        _check_model,
        _check_task,
        _check_steps,
        _check_weight_decay,
        _check_proximal,
        _check_rounds,
        _check_generation,
        _check_evaluation,
        _check_robust,
        _check_method,
        _check_sums,
        _check_privacy,
        _check_clipping,
        _check_distributed,
    ):
        check(s, _refuse)


def _refuse(message: str, hint: str) -> None:
    raise ConfideError("settings.combination", message, hint)


def _check_model(s: Settings, refuse: Refuse) -> None:
    if not s.model.name:
        refuse("model.name is empty.", "Name a Hub id, a model folder, or a cached model.")
    if s.model.name.lower().endswith(".gguf"):
        # What transformers reads of it stays quantised, and no tool finds an adapter's base there.
        refuse(
            f"model.name = {s.model.name!r:.200} is a GGUF file, not a model folder.",
            "Unpack it once by `confide assets unpack FILE FOLDER`, and name the folder.",
        )
    if s.lora.method == "head" and s.lora.targets:
        refuse(
            f"lora.method = 'head' trains no LoRA, but lora.targets = {s.lora.targets!r:.100}.",
            "Leave lora.targets empty.",
        )


def _check_steps(s: Settings, refuse: Refuse) -> None:
    """Who steps, and how often."""
    if s.round.mode == "gradient" and s.train.steps != 1:
        refuse(
            f"round.mode = 'gradient' takes one step a round, but train.steps = {s.train.steps}.",
            "Set train.steps = 1 or round.mode = 'steps'.",
        )
    if s.round.mode == "gradient" and s.train.optimizer != "sgd":
        refuse(
            f"round.mode = 'gradient' steps at the coordinator, so train.optimizer ="
            f" {s.train.optimizer!r} would never be used.",
            "Set train.optimizer = 'sgd', and choose the step by aggregate.optimizer.",
        )


def _check_weight_decay(s: Settings, refuse: Refuse) -> None:
    if s.train.weight_decay and s.train.optimizer != "adamw":
        refuse(
            f"train.weight-decay = {s.train.weight_decay:g} is not used by train.optimizer ="
            f" {s.train.optimizer!r}.",
            "Set train.optimizer = 'adamw', or train.weight-decay = 0.",
        )
    if s.train.weight_decay * s.train.lr > 1:
        refuse(
            f"train.weight-decay = {s.train.weight_decay:g} at train.lr = {s.train.lr:g} takes more"
            " than there is in one step.",
            "Their product must be at most 1; 0.01 and 0.001 are usual.",
        )


def _check_rounds(s: Settings, refuse: Refuse) -> None:
    if s.train.warmup >= s.round.count and s.train.warmup:
        refuse(
            f"train.warmup = {s.train.warmup} is all of the {s.round.count} rounds.",
            "Set train.warmup below round.count.",
        )
    if s.round.holders and s.round.min_holders > s.round.holders:
        refuse(
            f"round.min-holders = {s.round.min_holders} is above round.holders ="
            f" {s.round.holders}.",
            "Every round would be abandoned; lower round.min-holders.",
        )


def _check_privacy(s: Settings, refuse: Refuse) -> None:
    if s.privacy.unit == "person" and not s.data.person:
        refuse(
            "privacy.unit = 'person', but data.person names no column.",
            "Set data.person to the column whose equal values belong to one person, or"
            " privacy.unit = 'record'.",
        )
    if s.privacy.unit == "holder":
        _check_holder(s, refuse)
    if s.privacy.trust == "off" and s.privacy.noise_multiplier > 0:
        refuse(
            f"privacy.trust = 'off' adds no noise, but privacy.noise-multiplier ="
            f" {s.privacy.noise_multiplier:g}.",
            "Set it to 'auto', or privacy.trust = 'local'.",
        )
    if s.lora.dropout and s.privacy.trust != "off":
        refuse(
            f"lora.dropout = {s.lora.dropout:g} draws one mask for all records of a batch: with"
            " another record beside it each would be masked otherwise, and no clip bounds that.",
            "Set lora.dropout = 0; noise regularises already.",
        )


def _check_clipping(s: Settings, refuse: Refuse) -> None:
    """A clip norm that follows the updates is for whole updates in a sum that nobody sees into."""
    whole = s.privacy.unit == "holder" and s.privacy.trust == "distributed"
    if s.privacy.clip_quantile and not whole:
        refuse(
            f"privacy.clip-quantile = {s.privacy.clip_quantile:g} is for whole updates in a secure"
            f" sum, and here privacy.unit = {s.privacy.unit!r}, privacy.trust ="
            f" {s.privacy.trust!r}.",
            "Leave it at off, or set privacy.unit = 'holder' and privacy.trust = 'distributed'.",
        )


def _check_holder(s: Settings, refuse: Refuse) -> None:
    """What does not go with protecting all that a holder has."""
    about, least = "privacy.unit = 'holder'", s.round.min_holders
    if s.privacy.trust == "local":
        refuse(
            f"{about} with privacy.trust = 'local' would leave nothing of an update: each holder"
            " alone would be hidden in its own noise.",
            "Set privacy.trust = 'distributed', or privacy.unit = 'person'.",
        )
    if s.privacy.trust == "distributed" and s.privacy.delta > 1 / (_WELL_BELOW * least):
        refuse(
            f"{about} with privacy.delta = {s.privacy.delta:g} and {least} holders at least: within"
            " such a delta one holder in a few could be shown whole.",
            f"Set privacy.delta at most {1 / (_WELL_BELOW * least):.1g}.",
        )
    if s.task.counted or s.round.holder_metric:
        refuse(
            f"{about}: a noisy sum of records (task.class-weights = 'counted',"
            " round.holder-metric) would count each holder as one.",
            "Give task.class-weights as numbers, and leave round.holder-metric empty.",
        )


def _check_distributed(s: Settings, refuse: Refuse) -> None:
    """What has no proof, or no meaning, where noise is in shares behind masks."""
    if s.privacy.trust != "distributed":
        return
    about, method = "privacy.trust = 'distributed'", method_of(s.aggregate.method)
    if s.round.mode != "gradient" and s.privacy.unit != "holder":
        refuse(
            f"{about} does not go with round.mode = {s.round.mode!r}: a second local step would"
            " start where only a share of the noise protects the first, and no clip bounds what one"
            f" {s.privacy.unit} changes from there on.",
            "Set round.mode = 'gradient', or privacy.trust = 'local'.",
        )
    if s.aggregate.robust != "mean":
        refuse(
            f"{about} shows the coordinator the sum alone, and aggregate.robust ="
            f" {s.aggregate.robust!r} compares the holders' updates.",
            "Set aggregate.robust = 'mean', or privacy.trust = 'local'.",
        )
    if not method.summed:
        summed = ", ".join(name for name, one in METHODS.items() if one.summed)
        refuse(
            f"{about} shows the coordinator the sum of equal updates alone, which is not enough for"
            f" aggregate.method = {s.aggregate.method!r}.",
            f"Set aggregate.method to one of {summed}.",
        )
    if s.wire.encoding != "fp32":
        refuse(
            f"{about} sends whole numbers of 32 bits, so wire.encoding = {s.wire.encoding!r} would"
            " never be used.",
            "Set wire.encoding = 'fp32'.",
        )
    if not max(1, s.privacy.colluding) < s.round.min_holders:
        refuse(
            f"{about} needs more contributions (round.min-holders = {s.round.min_holders}) than"
            f" holders that may collude (privacy.colluding = {s.privacy.colluding}), and two or"
            " more: otherwise no share of noise is left.",
            "Raise round.min-holders to eight in ten of the holders, or lower privacy.colluding.",
        )


def _check_proximal(s: Settings, refuse: Refuse) -> None:
    """A pull to where the round began is nothing in its first step, and must not overshoot that."""
    pull, train = s.train.proximal, s.train
    if pull and train.steps == 1:
        refuse(
            f"train.proximal = {pull:g} pulls local steps to where the round began, and the first"
            f" is there: with train.steps = 1 it does nothing.",
            "Set round.mode = 'steps' with train.steps of 2 or more, or train.proximal = 0.",
        )
    if train.optimizer == "sgd" and pull * train.lr > 1:
        refuse(
            f"train.proximal = {pull:g} at train.lr = {train.lr:g} pulls farther than to where the"
            " round began.",
            "Their product must be at most 1.",
        )


def _check_robust(s: Settings, refuse: Refuse) -> None:
    """A round that a rule cannot stand would end the run; it is abandoned by min_holders."""
    rule, given, least = s.aggregate.robust, s.aggregate.byzantine, s.round.min_holders
    if rule == "mean":
        if given:
            refuse(
                f"aggregate.byzantine = {given}, but aggregate.robust = 'mean' withstands no"
                " hostile holder.",
                "Choose another rule, such as 'multi-krum', or set it to 0.",
            )
        return
    # One in five is never more than the rules can stand, from the fewest with one of them on.
    needed = fewest_holders(rule, given or 1)
    if least < needed:
        refuse(
            f"aggregate.robust = {rule!r} needs {needed} updates against {given or 1} hostile"
            f" ones, but round.min-holders = {least}.",
            f"Set round.min-holders = {needed} or more; a smaller round is abandoned.",
        )


def _check_method(s: Settings, refuse: Refuse) -> None:
    for message, instead in method_of(s.aggregate.method).objections(s):
        refuse(message, instead)


def _check_sums(s: Settings, refuse: Refuse) -> None:
    metric, kind = s.round.holder_metric, s.task.kind
    fitting = TASKS[kind].holder_metric
    if metric and metric != fitting:
        refuse(
            f"round.holder-metric = {metric!r} does not go with task.kind = {kind!r}.",
            f"Set round.holder-metric = {fitting!r}; task.metric and others are measured on the"
            " coordinator's own public text.",
        )
    if s.task.counted and not TASKS[kind].countable:
        refuse(
            f"task.kind = {kind!r} has no classes of which a record has one, so none can be"
            " counted by a noisy sum.",
            "Give task.class-weights as numbers.",
        )
    if s.task.counted and s.aggregate.robust != "mean":
        refuse(
            f"aggregate.robust = {s.aggregate.robust!r} withstands hostile holders, but a count of"
            " classes does not: one of them can make it say anything.",
            "Give task.class-weights and task.class-rates as numbers.",
        )


def _check_task(s: Settings, refuse: Refuse) -> None:
    """What the task's own module does not know: which other tasks there are, and what it is to
    the adapter and to the columns of the text."""
    task, kind, what = s.task, s.task.kind, TASKS[s.task.kind]
    for one in fields(task):
        value = getattr(task, one.name)
        if one.name in _LEARNT_BY and value != one.default and one.name not in what.takes:
            users = ", ".join(name for name, other in TASKS.items() if one.name in other.takes)
            key = f"task.{one.name.replace('_', '-')}"
            lacks = "classes" if one.name in _OF_CLASSES and not what.fewest_labels else "use"
            refuse(
                f"task.kind = {kind!r} has no {lacks} for {key} = {value!r:.100}.",
                f"Set {key} = {one.default!r}; it is for {users}.",
            )
    if what.target == "needed" and not s.data.target:
        refuse(
            f"task.kind = {kind!r} learns a target, but data.target names no column.",
            "Set data.target to the column that holds it.",
        )
    if what.target == "none" and s.data.target:
        refuse(
            f"task.kind = {kind!r} learns from the text alone, but data.target ="
            f" {s.data.target!r:.100}.",
            "Set data.target = ''.",
        )
    if task.copies > 1 and not task.word_dropout:
        refuse(
            f"task.copies = {task.copies} equal copies of a record teach nothing more than one.",
            "Set task.word-dropout above 0, or task.copies = 1.",
        )
    if not task.low < task.high:
        refuse(
            f"task.low = {task.low:g} is not below task.high = {task.high:g}.",
            "Exchange the two numbers.",
        )
    if what.language and s.lora.method == "head":
        refuse(
            f"lora.method = 'head' trains the task's head alone, and task.kind = {kind!r} has"
            " none of its own.",
            "Set lora.method = 'lora'.",
        )
    what.check_settings(s, refuse)


def _check_generation(s: Settings, refuse: Refuse) -> None:
    """Whether there is a metric of text that the model writes."""
    if s.round.generate_every and not TASKS[s.task.kind].writes(s.task):
        refuse(
            f"round.generate-every = {s.round.generate_every}, but no metric of task.kind ="
            f" {s.task.kind!r} and task.metric = {s.task.metric!r} is of text that the model"
            " writes; all are measured after every round.",
            "Set round.generate-every = 0.",
        )


def _check_evaluation(s: Settings, refuse: Refuse) -> None:
    """Whether what looks at the public loss after each round gets it."""
    looks = {"round.patience": s.round.patience, "train.schedule": s.train.schedule == "plateau"}
    for key in [key for key, looking in looks.items() if looking and s.round.evaluate_every > 1]:
        refuse(
            f"{key} looks at the public loss after each round, and round.evaluate-every ="
            f" {s.round.evaluate_every} leaves rounds out.",
            "Set round.evaluate-every = 1.",
        )


def hostile_holders(byzantine: int, holders: int) -> int:
    """How many hostile ones among ``holders`` updates are assumed (``aggregate.byzantine``)."""
    return byzantine or max(1, holders // _HOSTILE_SHARE)


def fewest_holders(rule: str, hostile: int) -> int:
    """How many updates a rule needs to withstand so many hostile ones."""
    return 1 if rule == "mean" else 2 * hostile + ROBUST[rule]
