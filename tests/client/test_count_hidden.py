"""How many records a holder has: n and n + 1 cannot be told apart from everything that left.

Promise 31. Every number of the mechanism is public, so that all that is no value is equal letter by
letter, and the noise on the values has the one size that the settings give. The distinguisher here
sees all of it, knows both texts and measures the size of the noise: what told n exactly while noise
was calibrated to batch / n (10 of 10 at a printed epsilon of 0.999).
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from confide.client.guard.policy import Policy
from confide.common.adapter.encoding import decode_vector, pack
from confide.common.adapter.schema import flatten
from confide.common.models.loading import load_model
from confide.common.plans import plan_of
from confide.common.settings import COORDINATORS_OWN, from_flat
from confide.common.wire.messages import TrainRequest
from tests import tiny
from tests.client.witness import Witness, lines_of

COUNT = 20  # n; the other holder has one more
BATCH = 12
WIDE = {"lora.rank": 16, "lora.layers": 0, "lora.targets": "query,key,value,dense"}
SIGMAS = 5.0
SETTINGS = [
    {"train.rate": rate, "privacy.epsilon": epsilon, **unit}
    for rate, epsilon, unit in itertools.product(
        (0.01, 0.05, 0.2, 0.5, 1.0),
        (0.5, 1.0),
        ({}, {"privacy.unit": "person", "data.person": "person"}),
    )
]


class Two:
    """The holder of n records and that of n + 1, asked the same."""

    def __init__(self, folder: Path, model: Path, rounds: int, **changes: Any) -> None:
        flat = tiny.config(model, folder, folder, train__batch=BATCH, round__count=rounds)
        flat |= WIDE | {"aggregate.method": "lora"} | changes
        self.settings = {k: v for k, v in flat.items() if k not in COORDINATORS_OWN}
        self.parsed = from_flat(self.settings)
        self.policy = Policy(
            max_epsilon=100.0,
            max_epsilon_per_run=100.0,
            max_delta=0.05,
            base_models=(str(model),),
            data=tiny.contract(flat),
        )
        self.folder, self.rounds = folder, rounds
        self.plan = plan_of(self.parsed)

    def tasks(self, run: str) -> list[TrainRequest]:
        loaded = load_model(self.parsed)
        adapter = flatten(loaded.initial, loaded.schema.shapes)
        return [
            TrainRequest(
                run=run,
                round=number,
                settings=self.settings,
                schema=loaded.schema.digest,
                sent="1" * len(loaded.schema.shapes),
                rest=pack(loaded.schema, adapter + 1, loaded.initial).rest,
                adapter=(adapter + 0.01).numpy().tobytes(),
            )
            for number in range(1, self.rounds + 1)
        ]

    def seen(self, count: int, run: str, seed: int | None = None) -> tuple[Any, float, int]:
        """All that is told, and the noise: its mean square in units of the plan's, over how many
        values. Without a seed the noise is the secure one."""
        folder = self.folder / f"{run}-{count}-{seed}"
        witness = Witness(folder, lines_of("classification", count), self.policy)
        seen = witness.answers(self.tasks(run), seed=seed, keep=True)
        noise = []
        for reply, total in zip(seen.replies, seen.sums, strict=True):
            sent = decode_vector(reply.values, "fp32", total.size).double().numpy()
            noise.append(-sent * BATCH - total)
        values = np.concatenate(noise) / self.plan.noise_std
        return seen.told, float(np.mean(values**2)), values.size


def test_there_are_twenty_settings() -> None:
    assert len(SETTINGS) == 20


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda c: f"{c['train.rate']}-{len(c)}")
def test_one_record_more_is_in_nothing_but_the_sum(
    tmp_path: Path, tiny_model: Path, changes: dict[str, Any]
) -> None:
    two = Two(tmp_path, tiny_model, 2, **changes)
    (told, square, size), (other, others, _) = (
        two.seen(count, "run-1", seed=5) for count in (COUNT, COUNT + 1)
    )
    assert told == other
    for found in (square, others):  # chi-square with that many degrees of freedom
        assert abs(found - 1) < SIGMAS * math.sqrt(2 / size)


@pytest.mark.slow
def test_who_measures_the_noise_guesses_no_better_than_the_claim_allows(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Ten rounds, fifty times: with the noise of batch / n the guess was right each time."""
    trials, right = 50, 0
    two = Two(tmp_path, tiny_model, 10, **{"train.rate": 0.5, "privacy.epsilon": 1.0})
    for trial in range(trials):
        small, large = (two.seen(count, f"run-{trial}")[1] for count in (COUNT, COUNT + 1))
        right += small > large  # fewer records had more noise
    most = math.e / (1 + math.e)  # of guesses between two at epsilon 1 (Kairouz et al. 2015)
    print(f"\nn against n + 1 by the size of the noise: {right} of {trials} right")
    assert right <= trials * most + 3 * math.sqrt(trials * most * (1 - most))
