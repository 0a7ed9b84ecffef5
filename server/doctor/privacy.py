"""Rules on the promise: is there one, whom is it for, and is it worth something?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...common.plans import has_bit, plan_of, planned_steps
from ...common.privacy.accountant import epsilon_pld
from ...common.privacy.clipping import count_std
from ...common.privacy.groups import group_epsilon
from ...common.settings import Settings
from ..report import MOST_PROMISE, epsilon_text, group_text
from . import Facts, Finding, Severity

MOST_EPSILON = 10.0  # above it: "weak to no formal privacy" (Ponomareva et al. 2023, section 5.2)
SAFE_SHARE = 0.1  # of 1/n, the most that delta should be
ENOUGH_HOLDERS = 100
MOST_SPREAD = 0.2  # of the contributions: the clip norm then moves 4 % a round by the noise alone
MOST_GROUP = 32  # records of a person, more of which would only be a longer computation


def rules(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Every rule of this module, in the order in which a reader wants them."""
    if settings.privacy.trust == "off":
        yield _noise_off()
        return
    for rule in (
        _delta,
        _few_holders,
        _clip_by_noise,
        _given_noise,
        _weak,
        _persons,
        _half_precision,
        _drawn_holders,
        _size,
    ):
        yield from rule(settings, facts)


def _noise_off() -> Finding:
    return Finding(
        name="noise-off",
        severity=Severity.NOT_PRIVATE,
        what="privacy.trust = 'off': no holder adds noise.",
        why="An update then is the records' gradients, from which text can be read back.",
        fix="Set privacy.trust = 'local'; keep 'off' for comparisons on public text.",
    )


def _delta(settings: Settings, facts: Facts) -> Iterator[Finding]:
    delta, unit = settings.privacy.delta, settings.privacy.unit
    if not facts.sizes or unit == "holder":
        return
    below = sum(delta >= 1 / n for n in facts.sizes)
    close = sum(delta > SAFE_SHARE / n for n in facts.sizes)
    largest = max(facts.sizes)
    fix = f"Set privacy.delta at most {_one_digit(SAFE_SHARE / largest)}."
    if below:
        yield Finding(
            name="delta-above-1/n",
            severity=Severity.NOT_PRIVATE,
            what=f"privacy.delta = {delta:g} is not below 1/n for {below} of {len(facts.sizes)}"
            f" holders (n is the number of {unit}s, {_range(facts)}).",
            why=f"Publishing one {unit} whole would be within such a delta (Dwork and Roth 2014);"
            " no holder refuses it by itself, since that would tell its size.",
            fix=fix,
        )
    elif close:
        yield Finding(
            name="delta-large",
            severity=Severity.NOT_SOUND,
            what=f"privacy.delta = {delta:g} is above 1/(10 n) for {close} of"
            f" {len(facts.sizes)} holders ({_range(facts)} {unit}s).",
            why=f"With n {unit}s, n delta of them may be exposed in the worst case; that should be"
            " well below one.",
            fix=fix,
        )


def _few_holders(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Whether there are enough holders to hide one of them."""
    many = facts.holders or settings.round.min_holders
    if settings.privacy.unit != "holder" or many >= ENOUGH_HOLDERS:
        return
    yield Finding(
        name="few-holders",
        severity=Severity.NOT_SOUND,
        what=f"privacy.unit = 'holder' with {many} holders.",
        why="The noise that hides all that one of them has hides most of what few have together:"
        " docs/benchmarks.md has the accuracy at 10, 100 and 1,000 holders.",
        fix="Set privacy.unit = 'person' or 'record', or find a hundred holders.",
    )


def _clip_by_noise(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Whether a clip norm that follows the updates would follow the noise."""
    if not has_bit(settings):
        return
    plan = plan_of(settings)
    spread = count_std(plan.noise_multiplier, plan.least)
    if spread <= MOST_SPREAD * plan.least:
        return
    yield Finding(
        name="clip-by-noise",
        severity=Severity.NOT_SOUND,
        what=f"privacy.clip-quantile = {settings.privacy.clip_quantile:g}, though the number of"
        f" updates that fit is known to {spread:.1f} of {plan.least} only.",
        why="The clip norm then follows the noise, and all updates get more of it for that.",
        fix="Set privacy.clip-quantile = 'off', or round.min-holders at least"
        f" {math.ceil(spread / MOST_SPREAD)}.",
    )


def _given_noise(settings: Settings, facts: Facts) -> Iterator[Finding]:
    given = settings.privacy.noise_multiplier
    if not given:
        return
    yield Finding(
        name="noise-given",
        severity=Severity.NOT_SOUND,
        what=f"privacy.noise-multiplier = {given:g} is given, so that privacy.epsilon ="
        f" {settings.privacy.epsilon:g} is not used; it gives {_given_epsilon(settings)}.",
        why="Nobody has agreed to that number, and only the holders' policies limit it.",
        fix="Set privacy.noise-multiplier = 'auto'; the noise then follows from privacy.epsilon.",
    )


def _given_epsilon(settings: Settings) -> str:
    epsilon = _most_epsilon(settings)
    small = epsilon <= MOST_PROMISE
    return f"epsilon = {epsilon_text(epsilon)}" if small else group_text(epsilon)


def _most_epsilon(settings: Settings) -> float:
    """What the run may spend."""
    if not settings.privacy.noise_multiplier:
        return settings.privacy.epsilon
    return epsilon_pld(planned_steps(settings), settings.privacy.delta)


def _weak(settings: Settings, facts: Facts) -> Iterator[Finding]:
    epsilon = _most_epsilon(settings)
    if epsilon <= MOST_EPSILON:
        return
    odds = f"e^{epsilon:.3g}" if epsilon > MOST_EPSILON + 10 else f"{math.exp(epsilon):,.0f}"
    yield Finding(
        name="epsilon-weak",
        severity=Severity.NOT_SOUND,
        what=f"epsilon = {_shown(epsilon)} is above {MOST_EPSILON:g}.",
        why=f"It allows what is learnt about one {settings.privacy.unit} to change odds by a factor"
        f" of {odds}: formally weak or no privacy (Ponomareva et al. 2023: at most 1 is strong, at"
        " most 10 reasonable). It is also above what a holder's policy allows by default.",
        fix="Set privacy.epsilon to 8 or less; `confide budget plan` shows what that asks for.",
    )


def _persons(settings: Settings, facts: Facts) -> Iterator[Finding]:
    column = settings.data.person or facts.column
    if settings.privacy.unit != "record" or not column:
        return
    person = ""
    if facts.most_records > 1:
        records = min(facts.most_records, MOST_GROUP)
        epsilon = group_epsilon(planned_steps(settings), settings.privacy.delta, records)
        person = (
            f" One value of it has up to {facts.most_records} records at one holder, and for"
            f" {records} of them epsilon is {group_text(epsilon)}."
        )
    yield Finding(
        name="record-though-persons",
        severity=Severity.NOT_SOUND,
        what=f"privacy.unit = 'record', although the column {column!r} tells persons apart.",
        why="The promise is for one record; whoever has several is protected less." + person,
        fix=f"Set privacy.unit = 'person' and data.person = {column!r}.",
    )


def _half_precision(settings: Settings, facts: Facts) -> Iterator[Finding]:
    if settings.model.dtype == "float32":
        return
    yield Finding(
        name="bfloat16",
        severity=Severity.NOT_SOUND,
        what=f"model.dtype = {settings.model.dtype!r} computes the model in bfloat16"
        + (" where the processor has it." if settings.model.dtype == "auto" else "."),
        why="A record's gradient then depends on the records beside it by up to a thousandth of"
        " its length (9.5e-4 measured, 1.8e-7 in float32), and the clip norm bounds what one"
        " record changes only that well.",
        fix="Set model.dtype = 'float32'.",
    )


def _drawn_holders(settings: Settings, facts: Facts) -> Iterator[Finding]:
    drawn = settings.round.holders
    if not drawn or (facts.holders and drawn >= facts.holders):
        return
    share = f" of {facts.holders}" if facts.holders else ""
    yield Finding(
        name="holders-drawn",
        severity=Severity.NOTE,
        what=f"round.holders = {drawn}{share}: holders are drawn for each round.",
        why="That amplifies nothing towards the coordinator, who draws and knows who took part; and"
        " each holder adds the noise of all round.count rounds, since it may be drawn for every"
        " one of them.",
        fix="Set round.holders = 0 with fewer rounds, unless there are too many holders to ask.",
    )


def _size(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Whether a holder's sum may be cut to the length of ``train.batch`` clipped units."""
    unit, batch, rate = settings.privacy.unit, settings.train.batch, settings.train.rate
    larger = sum(rate * n > batch for n in facts.sizes)
    if not larger or facts.at_most or unit == "holder":
        return
    yield Finding(
        name="batch-small",
        severity=Severity.NOTE,
        what=f"train.rate = {rate:g} uses more than train.batch = {batch} {unit}s in a step on"
        f" average at {larger} of {len(facts.sizes)} holders.",
        why="Sums are divided by train.batch, the same at every holder, so that those of large"
        " holders are longer; what is longer than so many clipped gradients is cut.",
        fix=f"Set train.batch to {math.ceil(rate * max(facts.sizes))} or more, and train.lr in"
        " proportion.",
    )


def _range(facts: Facts) -> str:
    low, high = facts.sizes[0], facts.sizes[-1]
    text = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"at most {text}" if facts.at_most else text


def _one_digit(value: float) -> str:
    """Rounded down to one digit, since it is the most that is allowed."""
    power = math.floor(math.log10(value))
    return f"{math.floor(value / 10**power + 1e-9)}e{power:03d}"


def _shown(epsilon: float) -> str:
    return epsilon_text(epsilon) if math.isfinite(epsilon) else "infinite"
