"""An audit of secure sums: what is left of the noise as the coordinator and its holders see it.

The coordinator and T holders subtract all that they know from a sum of the fewest contributions
that an opener allows. What is left must have the noise that is claimed, and a unit of any size must
be in it with the clip norm at most. All of it goes through the code that runs: clip, share, ring,
masks, openers. 50 sums of 4,000 values are 100,000 trials with a canary and 100,000 without, so
that a tenth of a per cent of the noise is seen; each of six faults that such systems had must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from confide.client.training import private_step
from confide.client.training.private_step import PrivateOptimizer
from confide.common.masking.keys import Identity, Roster, SealingKey
from confide.common.masking.openers import Call, Opener, combine, contribute, openable
from confide.common.masking.ring import CHECKS, from_words, to_words
from confide.common.plans import most_units
from confide.common.privacy.noise import SecureGenerator
from confide.common.privacy.plan import Plan, Trust
from confide.common.privacy.shares import step_of

MEMBERS, LEAST, COLLUDING, BATCH = 10, 8, 2, 64
VALUES, SUMS, FEW = 4000, 50, 10
PLAN = Plan(
    trust=Trust.DISTRIBUTED,
    clip_norm=0.5,
    noise_multiplier=1.3,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=1,
    delta=1e-5,
    least=LEAST,
    colluding=COLLUDING,
)
MONKEY = pytest.MonkeyPatch


@dataclass
class Seen:
    """What is left of all sums once what is known is taken off: with and without canaries, and how
    many different values it has."""

    plain: NDArray[np.float64]
    canaries: NDArray[np.float64]
    step: float

    def faults(self, plan: Plan) -> set[str]:
        """What contradicts the claim."""
        ratio = float(np.sqrt(np.mean(self.plain**2))) / plan.noise_std
        canary = float(self.canaries.mean()) / plan.clip_norm
        found = {"less noise than claimed"} if ratio < 0.99 else set()
        found |= {"noise in common"} if ratio > 1.02 else set()
        found |= {"a unit moves more than the clip norm"} if abs(canary - 1) > 0.03 else set()
        found |= {"the grid shows"} if plan.share_std < 4 * self.step else set()
        return found


def holder_sum(
    canaries: bool, generator: SecureGenerator, change: Callable[[PrivateOptimizer], None]
) -> NDArray[np.float64]:
    """A holder's clipped sum with its share of noise; 2,000 units that are each on a value of their
    own, and a hundred times as long as the clip norm, where it has the canaries."""
    parameter = torch.nn.Parameter(torch.zeros(VALUES))
    optimizer = PrivateOptimizer(torch.optim.SGD([parameter], lr=1.0), PLAN, BATCH, generator)
    change(optimizer)
    if canaries:
        rows = torch.zeros(VALUES // 2, VALUES)
        rows.fill_diagonal_(100 * PLAN.clip_norm)
        parameter.grad_sample = rows
        optimizer.add()
    optimizer.finish()
    return optimizer.released[parameter].numpy()


Change = Callable[[int, PrivateOptimizer], None]


def audit(
    change: Change = lambda holder, optimizer: None,
    generator: Callable[[int, int], SecureGenerator] | None = None,
    step: float | None = None,
    sums: int = FEW,
) -> Seen:
    """Many sums of the fewest contributors, of whom the last ``COLLUDING`` tell all."""
    identities = [Identity(f"h{i}", Identity.new_secret()) for i in range(MEMBERS)]
    roster = Roster([one.member for one in identities])
    keys = [SealingKey(SealingKey.new_secret()) for _ in range(COLLUDING + 1)]
    openers = tuple(Opener.of(i, "run", k) for i, k in zip(identities, keys, strict=False))
    step = step or step_of(PLAN.share_std, PLAN.clip_norm * most_units(BATCH))
    make = generator or (lambda holder, number: SecureGenerator())
    left = []
    for number in range(sums):
        call = Call(
            run="run",
            request=f"{number:064x}",
            roster=roster,
            openers=openers,
            least=LEAST,
            colluding=COLLUDING,
            size=VALUES + CHECKS,
        )
        call.check()
        sent, known = [], np.zeros(VALUES)
        for holder in range(LEAST):
            values = holder_sum(holder == 0, make(holder, number), lambda o, h=holder: change(h, o))
            words = to_words(values, step)
            sent.append(contribute(identities[holder], call, words))
            if holder >= LEAST - COLLUDING:
                known += from_words(words, step, 1)
        statements = [statement for statement, _ in sent]
        opened = {
            one.name: openable(one.name, key, call, statements).answer()
            for one, key in zip(openers, keys, strict=True)
        }
        total = combine(call, [payload for _, payload in sent], opened)
        left.append(from_words(total, step, LEAST) - known)
    seen = np.stack(left)
    return Seen(seen[:, VALUES // 2 :], seen[:, : VALUES // 2], step)


def test_what_is_left_of_the_noise_is_what_is_claimed() -> None:
    seen = audit(sums=SUMS)
    assert seen.faults(PLAN) == set()
    ratio = float(np.sqrt(np.mean(seen.plain**2))) / PLAN.noise_std
    assert ratio == pytest.approx(1.0, abs=0.01)
    assert float(seen.canaries.mean()) == pytest.approx(PLAN.clip_norm, rel=0.02)
    # Independent on every value, and in every sum.
    flat = seen.plain.ravel()
    assert abs(float(np.corrcoef(flat[:-1], flat[1:])[0, 1])) < 0.02
    assert abs(float(np.corrcoef(seen.plain[:-1].ravel(), seen.plain[1:].ravel())[0, 1])) < 0.02


def test_a_share_that_is_reckoned_for_all_who_were_asked_is_found(monkeypatch: MONKEY) -> None:
    monkeypatch.setattr(Plan, "honest", property(lambda plan: MEMBERS))
    assert "less noise than claimed" in audit().faults(PLAN)


def test_colluding_holders_that_were_forgotten_are_found(monkeypatch: MONKEY) -> None:
    monkeypatch.setattr(Plan, "honest", property(lambda plan: LEAST))
    assert "less noise than claimed" in audit().faults(PLAN)


def test_one_holder_without_noise_is_found() -> None:
    def change(holder: int, optimizer: PrivateOptimizer) -> None:
        optimizer._noised = holder != 1

    assert "less noise than claimed" in audit(change).faults(PLAN)


def test_the_same_noise_at_two_holders_is_found() -> None:
    def generator(holder: int, number: int) -> SecureGenerator:
        if holder in (1, 2):
            return SecureGenerator.insecure_seeded(number)
        return SecureGenerator()

    assert audit(generator=generator).faults(PLAN) == {"noise in common"}


def test_a_clip_norm_twice_as_wide_is_found() -> None:
    def change(holder: int, optimizer: PrivateOptimizer) -> None:
        optimizer.max_grad_norm = 2 * PLAN.clip_norm
        optimizer.noise_multiplier = PLAN.noise_multiplier / 2

    assert audit(change).faults(PLAN) == {"a unit moves more than the clip norm"}


def test_a_grid_far_above_the_share_is_found() -> None:
    seen = audit(step=16 * PLAN.share_std)
    assert "the grid shows" in seen.faults(PLAN)
    assert "less noise than claimed" in seen.faults(PLAN)


def test_noise_of_another_size_does_not_even_leave_a_holder(monkeypatch: MONKEY) -> None:
    """The seventh: a broken source is noticed where it is, before anything is sent."""
    generator = SecureGenerator()
    monkeypatch.setattr(generator, "normal", lambda n: np.full(n, 0.5))
    with pytest.raises(Exception, match=r"train\.noise"):
        holder_sum(False, generator, lambda optimizer: None)
    assert private_step.check_noise(torch.randn(VALUES)) is None
    assert math.isfinite(PLAN.share_std)
