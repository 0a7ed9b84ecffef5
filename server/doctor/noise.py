"""Rules on what the noise leaves of the signal, and on budget spent for nothing.

Signal to noise, in one figure. Over T steps a holder with n units, drawn at rate q and clipped to
C, adds up to T q n C along one direction, if all its gradients agree; its noise has length
sqrt(T d) z C over d trained values (``privacy.advice`` derives both). So

    snr = q n sqrt(T) / (z sqrt(d)),      with every unit in each step  n mu / sqrt(d)

is the most by which a holder's sum can stand out of its own noise: below 1 the noise is longer than
the sum, whatever the text says. Averaging H such holders gives sqrt(H) times as much. Real
gradients agree less than that (docs/benchmarks.md has accuracies at several epsilons). In a secure
sum nobody sees one holder's: there the units are those of all, and the noise that of the sum.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from ...common.methods import method_of
from ...common.plans import is_shared, plan_of
from ...common.privacy.accountant import GaussianSteps, calibrate, epsilon_pld
from ...common.privacy.advice import noise_to_signal
from ...common.settings import Settings
from . import Facts, Finding, Severity

DROWNED = 1.0  # snr of one holder at or below which its noise is longer than any sum it may give
WASTE_NOTED, WASTE_UNSOUND = 1.15, 1.5  # times the noise that the same epsilon asks for
SHORT_SECONDS = 30.0  # the first round of the demo takes 22 s (docs/benchmarks.md)
FEWEST_STEPS = 10


def rules(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Every rule of this module; those on noise only where there is some."""
    if settings.privacy.trust != "off":
        yield from both_factors(settings, facts)
        yield from _few_shares(settings, facts)
        yield from _drowned(settings, facts)
        yield from _small_steps(settings, facts)
        yield from _unknown(facts)
    yield from head_alone(settings)
    yield from _abandoned(settings, facts)
    yield from _impatient(settings)


def snr(settings: Settings, units: int, trained: int) -> float:
    """The most signal to noise of one holder over the run, see above."""
    steps = _rounds(settings)
    on_one = noise_to_signal(
        steps.noise_multiplier,
        sampling_rate=steps.sampling_rate,
        units=units,
        steps=steps.steps,
    )
    return 1 / (on_one * math.sqrt(trained))


def _rounds(settings: Settings) -> GaussianSteps:
    plan = plan_of(settings)
    return plan.steps(plan.max_rounds)


def _seen(settings: Settings, facts: Facts) -> Facts:
    """The facts with all holders as one, where only their sum is seen."""
    if not is_shared(settings) or not facts.sizes:
        return facts
    return replace(facts, sizes=(sum(facts.sizes),))


def _few_shares(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Whether a secure sum is worth its trips."""
    plan, many = plan_of(settings), facts.holders
    if not is_shared(settings):
        return
    gain = math.sqrt(plan.honest)  # against local noise, however many holders there are
    if plan.honest > 2 and (not many or many < 2 * plan.least):
        return
    alone = plan.honest == 1
    wanted, may = max(plan.least, math.ceil(0.8 * many)), max(1, many // 5)
    yield Finding(
        name="few-shares",
        severity=Severity.NOT_SOUND if alone else Severity.NOTE,
        what=f"round.min-holders - privacy.colluding = {plan.honest}: the sum has"
        f" {1 / gain:.0%} of the noise that it would have with privacy.trust = 'local'.",
        why="Each holder adds the noise divided by the root of that number."
        + (" At 1 it adds all of it, and the masks protect nobody better." if alone else ""),
        fix=f"With {many} holders, round.min-holders = {wanted} and privacy.colluding = {may} are"
        " usual."
        if many >= 5
        else "Find more holders; three or four gain little from a secure sum, and"
        " privacy.trust = 'local' is simpler.",
    )


def both_factors(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Of a method that is not sound under noise, which a run says at its start, too."""
    method, facts = method_of(settings.aggregate.method), _seen(settings, facts)
    bare = settings.privacy.trust == "off" or settings.lora.method == "head"
    bare = bare or settings.privacy.unit == "holder"  # there it is a matter of few holders
    if bare or method.noise.verdict == "sound":
        return
    much = not (facts.sizes and facts.trained) or (
        snr(settings, facts.sizes[0], facts.trained) < 10 * DROWNED
    )
    yield Finding(
        name="both-factors",
        severity=Severity.NOT_SOUND if much else Severity.NOTE,
        what=f"aggregate.method = {method.name!r} {method.noise.what}",
        why=method.noise.why,
        fix=method.noise.instead,
    )


def head_alone(settings: Settings) -> Iterator[Finding]:
    """Of a method that trains LoRA and never B, which a run says at its start, too."""
    method = method_of(settings.aggregate.method)
    if "B" in method.trains or settings.lora.method == "head":
        return
    yield Finding(
        name="b-stays-zero",
        severity=Severity.NOT_SOUND,
        what=f"aggregate.method = {method.name!r} trains LoRA's A alone, and B stays at zero.",
        why="LoRA's change of a weight is B times A, which is zero whatever A becomes: the head"
        " alone learns, and A takes a part of its clip norm.",
        fix="Set aggregate.method = 'rolora', which trains B and A in turn, 'ffa', which trains B,"
        " or lora.method = 'head', which trains the head alone.",
    )


def _drowned(settings: Settings, facts: Facts) -> Iterator[Finding]:
    if not (facts.sizes and facts.trained) or is_shared(settings):
        return
    # The figure rises with the number of units, so that the small ones are those below a place.
    low = bisect_left(facts.sizes, DROWNED, key=lambda units: snr(settings, units, facts.trained))
    if not low:
        return
    worst = snr(settings, facts.sizes[0], facts.trained)
    yield Finding(
        name="drowned-holders",
        severity=Severity.NOT_SOUND,
        what=f"{low} of {len(facts.sizes)} holders are drowned by their own noise: with"
        f" {facts.sizes[0]:,} {settings.privacy.unit}s signal to noise is at most {worst:.2f}.",
        why="q n sqrt(T) / (z sqrt(d)), the longest sum that their clipped gradients can add up to"
        f" over the run by the length of its noise, with d = {facts.trained:,} trained values."
        f" Below {DROWNED:g} their updates are mostly noise, and each counts as much as any other.",
        fix="Train fewer values (lora.method = 'head', a smaller lora.rank or lora.layers), join"
        " such holders' text, leave them out, or choose a larger privacy.epsilon.",
    )


def _small_steps(settings: Settings, facts: Facts) -> Iterator[Finding]:
    if not facts.sizes or facts.at_most or settings.privacy.unit == "holder":
        return
    units = facts.sizes[len(facts.sizes) // 2]
    steps = _rounds(settings)
    if steps.sampling_rate == 1:
        return
    has = noise_to_signal(
        steps.noise_multiplier, sampling_rate=steps.sampling_rate, units=units, steps=steps.steps
    )
    epsilon, delta = settings.privacy.epsilon, settings.privacy.delta
    if settings.privacy.noise_multiplier:
        epsilon = epsilon_pld([steps], delta)
    whole = calibrate(epsilon=epsilon, delta=delta, sampling_rate=1.0, steps=1)
    waste = has * units / whole
    if waste < WASTE_NOTED:
        return
    few = max(FEWEST_STEPS, round(steps.steps * steps.sampling_rate))
    yield Finding(
        name="many-small-steps",
        severity=Severity.NOT_SOUND if waste >= WASTE_UNSOUND else Severity.NOTE,
        what=f"{steps.steps:,} steps at train.rate = {settings.train.rate:g}: per"
        f" unit of signal {waste:.2f} times the noise of few large steps at the same epsilon"
        f" (a holder of {units:,}).",
        why="Noise over all steps by signal over all steps is z / (q n sqrt(T)); with every"
        f" {settings.privacy.unit} in each step it is least, whatever the number of steps.",
        fix=f"Set train.rate = 1 and about {few} steps in all (round.count"
        " times train.steps); `confide budget plan` shows what lies between.",
    )


def _unknown(facts: Facts) -> Iterator[Finding]:
    missing = [] if facts.sizes else ["how much text each holder has"]
    missing += [] if facts.trained else ["how many values are trained"]
    if missing:
        yield Finding(
            name="facts-unknown",
            severity=Severity.NOTE,
            what=f"It is not known {' nor '.join(missing)}.",
            why="Checks that depend on it (delta against 1/n, noise against signal) were skipped.",
            fix="Prepare the scenario with `confide assets fetch`, or look at the finished run.",
        )


def _abandoned(settings: Settings, facts: Facts) -> Iterator[Finding]:
    least, asked = settings.round.min_holders, settings.round.holders or facts.holders
    if facts.holders and least > facts.holders:
        yield Finding(
            name="too-few-holders",
            severity=Severity.NOT_SOUND,
            what=f"round.min-holders = {least}, but there are {facts.holders} holders.",
            why="No round can begin.",
            fix=f"Set round.min-holders to {max(1, facts.holders // 2)}.",
        )
    elif asked and least == asked > 1:
        yield Finding(
            name="one-late-holder",
            severity=Severity.NOT_SOUND,
            what=f"round.min-holders = {least} is as many as are asked.",
            why="One late or refusing holder abandons the round for all, after the others have"
            " charged their ledgers; no charge is taken back.",
            fix=f"Set round.min-holders to {max(1, asked // 2)}, or less."
            if not is_shared(settings)
            else "With privacy.trust = 'distributed' a smaller round.min-holders makes each share"
            " of noise larger: choose eight in ten of the holders.",
        )


def _impatient(settings: Settings) -> Iterator[Finding]:
    if settings.round.timeout < SHORT_SECONDS:
        yield Finding(
            name="short-timeout",
            severity=Severity.NOTE,
            what=f"round.timeout = {settings.round.timeout:g} s.",
            why="A holder that answers later has charged its ledger for nothing; the first round"
            " loads the model and reads the text.",
            fix="Set round.timeout to several times the length of a first round, such as 600.",
        )
