"""The report's standing words: what left the holders, who answers for it, what is not covered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...common.methods import method_of
from ...common.plans import has_bit, is_shared, plan_of
from ...common.privacy.plan import Unit
from ...common.settings import Settings
from ...common.wire.outgoing import not_accounted, public
from . import Json, group_text, metric_title, value_text
from .accounts import Account
from .reading import RunRecord


def released(run: RunRecord, accounts: Sequence[Account]) -> Json:
    """Everything that left a holder, or that the run made public, by who answers for it."""
    clip = run.settings.privacy.clip
    at_first = " at first" if has_bit(run.settings) else ""
    guarded = f"clipped to {clip:g}{at_first} per {run.unit}; {_noise_by(run.settings)}"
    left = [(_update(run), guarded), *_summed(run)]
    if not run.private:
        left = [(what, "no noise was added: it can reveal records") for what, _ in left]
    bare = [] if run.private else left
    return {
        "accounted": _things(left if run.private else []),
        "public": _things(public()),
        "not_accounted": _things([*bare, *not_accounted()]),
    }


def _update(run: RunRecord) -> str:
    """What an update is, and of how many numbers: those that leave, not all that are trained."""
    method = method_of(run.settings.aggregate.method)
    gradient = run.settings.round.mode == "gradient"
    what = "sum of clipped gradients" if gradient else "change of the adapter"
    if sent := run.start.get("model", {}).get("sent"):
        what += f" of {' or '.join(f'{size:,}' for size in sent)} numbers"
        what += " (rounds differ)" if len(sent) > 1 else ""
        what += " (fewer from a holder that trains a smaller rank)" if method.ranks else ""
    if has_bit(run.settings):
        what += ", with one value that says whether it was cut"
    if method.stays:
        what += f", without LoRA's {method.stays},"
    return f"One {what} per round and holder"


def _summed(run: RunRecord) -> list[tuple[str, str]]:
    """The noisy sums, each of one vector per holder."""
    noise = run.settings.privacy.sum_noise
    guarded = (
        f"no {run.unit} moves it by more than 1; Gaussian noise of standard deviation {noise:g}:"
        f" {_noise_by(run.settings)}, and charged its ledger"
    )
    return [(f"One sum per holder: {_SUMS[line['of']]}", guarded) for line in run.summed.values()]


def _noise_by(settings: Settings) -> str:
    if not is_shared(settings):
        return "the holder added Gaussian noise itself"
    return (
        "the holder added its share of the Gaussian noise and masked it, so that the sum over the"
        " holders alone was seen"
    )


ACCOUNTANTS = (
    "PLD composes the whole distribution of the privacy loss and rounds up: it is the figure that"
    " counts. PRV composes the same distribution by another discretisation, with an error of up to"
    " 0.01, so that it lies close to PLD on either side; RDP keeps moments of it only, and is an"
    " upper bound that is 10 to 40 % higher."
)


def mechanism(run: RunRecord) -> Json:
    """How noise and batches were made, as far as it is the same at every holder."""
    privacy = run.settings.privacy
    return {
        "clip": privacy.clip,
        "sampling": f"Poisson: in each step every {run.unit} is in with a chance equal to the"
        " sampling rate, independently of all others; at rate 1 all are in each step",
        "noise": _mechanism_noise(run),
        "accountants": ACCOUNTANTS,
    }


def _mechanism_noise(run: RunRecord) -> str:
    if not run.private:
        return "none"
    parts = "the holder adds all of it"
    if is_shared(run.settings):
        plan = plan_of(run.settings)
        parts = f"each holder adds it divided by the root of {plan.honest}, rounded afterwards"
    told = (
        "Gaussian, on the sum of the clipped parts; its standard deviation is the noise multiplier"
        f" times the clip norm, and {parts}"
    )
    if has_bit(run.settings):
        told += (
            ". The clip norm moves from round to round, so that a share of"
            f" {run.settings.privacy.clip_quantile:g} of the updates is no longer; each update says"
            " in one more value, under the same noise, whether it was cut"
        )
    return told


def told_of_sums(report: Mapping[str, Any]) -> list[str]:
    """What the sums over the holders brought, in sentences for people."""
    return [_told(line, report["settings"]) for line in report.get("sums", ())]


def _told(line: Json, settings: Json) -> str:
    kind = "noisy sums" if line["noise_std"] else "exact sums, NOT PRIVATE,"
    by, of = f"by {kind} of {line['accepted']} holders", line["of"]
    if of == "classes":
        return f"Classes were counted before the first round, {by}: {_counts(line, settings)}."
    title = f"{metric_title(of)} at the holders, on the text that they trained on"
    if line["value"] is None:
        return f"{title}: not known, since too few answered or the noise hides so little text."
    return (
        f"{title}, so no measure of new text: {value_text(of, line['value'])}, {by};"
        f" the noise alone gives it a standard error of {value_text(of, line['error'])}."
    )


def _counts(line: Json, settings: Json) -> str:
    labels = [name.strip() for name in settings["task.labels"].split(",") if name.strip()]
    pairs = zip(labels, line["totals"], strict=True)
    counts = ", ".join(f"{name} {total:,.0f}" for name, total in pairs)
    noise = f"the noise on each has standard deviation {line['noise_std']:,.1f}"
    gave = [f"{key} = {text.partition(' ')[2]}" for key, text in line["gave"].items()]
    return "; ".join([counts, noise, *(gave or ["too few counted"])])


_SUMS = {
    "classes": "how many of each class there are",
    "accuracy": "how many the final adapter gets right, and how many wrong",
    "perplexity": "the final adapter's loss on each, up to that of a guess",
}


def _things(pairs: Iterable[tuple[str, str]]) -> list[Json]:
    return [{"what": what, "why": why} for what, why in pairs]


def not_protected(run: RunRecord, groups: Sequence[Json]) -> list[Json]:
    """What the claim does not cover, whoever the holder is."""
    return _things([_weaker(run, groups), *_NOT_PROTECTED])


def _weaker(run: RunRecord, groups: Sequence[Json]) -> tuple[str, str]:
    """For whom the promise is weaker than it may sound."""
    person = run.settings.data.person
    if run.unit is Unit.HOLDER:
        apart = (
            "The promise is that a holder's update could as well have been zero. Who takes part is"
            " public, and what several holders have of one person is protected as each holder's"
            " own."
        )
        return ("That a holder takes part", apart)
    if run.unit is Unit.PERSON:
        apart = (
            f"Persons are the values of the column {person!r}, as the holder filled it in. Someone"
            " under two of them counts as two persons, and what one person's records say of another"
            " is protected as the first one's alone."
        )
        return ("A person under several names", apart)
    column = f" The column {person!r} names persons, but was not the unit." if person else ""
    weaker = "".join(
        f" With {group['records']} at one holder, epsilon is {group_text(group['epsilon'])}."
        for group in groups
    )
    several = f"The promise is for one record; for a person with more it is weaker.{weaker}{column}"
    return ("A person with several records", several)


_NOT_PROTECTED = (
    (
        "One person at several holders",
        "Each holder accounts for its own text. What several of them spend on the same person "
        "adds up, and none of them can know it.",
    ),
    (
        "Facts shared by many",
        "What many records say, an adapter may learn and repeat. It would do so without any "
        "single one of them, and so no claim of this kind covers it.",
    ),
    ("The holder's own machine", "Its disks, logs and backups, and whoever may read them."),
    (
        "A holder that runs other software",
        "The noise is added by the holder's own copy of confide. A receipt is the holder's word; "
        "only its ledger can be verified.",
    ),
    (
        "Limits of the machine",
        "Noise is drawn and added in floating point, and computing time depends on the text: "
        "attacks on rounding or on time are made harder, and are not excluded.",
    ),
)
