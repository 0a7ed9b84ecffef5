"""The unit holder: the whole update of one is the one term, clipped once, with a share of noise."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from confide.client.training.private_step import noised_update
from confide.common.errors import ConfideError
from confide.common.plans import inner_plan, plan_of, step_of_round
from confide.common.privacy.noise import SecureGenerator
from confide.common.privacy.plan import Plan, Relation, Trust, Unit
from confide.common.privacy.statement import claim_of
from confide.common.settings import Settings, from_flat
from tests import tiny

SHARED: dict[str, Any] = {
    "privacy__trust": "distributed",
    "privacy__unit": "holder",
    "privacy__colluding": 1,
    "round__min_holders": 3,
    "round__mode": "steps",
    "train__steps": 4,
    "privacy__delta": 1e-2,
}


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return from_flat(tiny.config(tmp_path, tmp_path, tmp_path, **(SHARED | changes)))


class Silent(SecureGenerator):
    """Draws no noise, so that what is under it can be seen."""

    def normal(self, n: int) -> Any:
        return np.zeros(n)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(settings(tmp_path, privacy__noise_multiplier=2.0, privacy__clip=0.5))


def bare(change: torch.Tensor, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr("confide.client.training.private_step.check_noise", lambda draw: None)
    return noised_update(change, plan, Silent())


@pytest.mark.parametrize("length", [0.0, 1e-30, 0.1, 0.5, 0.5000001, 3.0, 1e18])
def test_an_update_is_never_longer_than_the_clip_norm_and_keeps_its_direction(
    plan: Plan, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    direction = torch.linspace(-1, 1, 7)
    change = length * direction / torch.linalg.vector_norm(direction)
    kept = bare(change, plan, monkeypatch)
    assert kept.dtype == torch.float64
    assert float(torch.linalg.vector_norm(kept)) <= 0.5 * (1 + 1e-12)
    if length <= 0.5:
        assert torch.allclose(kept, change.double(), rtol=1e-6, atol=0)
    elif length < 1e10:
        cosine = torch.dot(kept, change.double()) / (
            0.5 * torch.linalg.vector_norm(change.double())
        )
        assert float(cosine) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_zero_and_nobody_is_told(
    plan: Plan, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not bare(torch.tensor([1.0, bad, 2.0]), plan, monkeypatch).any()


@pytest.mark.parametrize(("scale", "found"), [(1.0, False), (0.9, True), (1.1, True)])
def test_the_noise_is_a_share_and_another_is_noticed(plan: Plan, scale: float, found: bool) -> None:
    assert plan.share_std == pytest.approx(2.0 * 0.5 / math.sqrt(2))
    draws = noised_update(torch.zeros(50_000), plan, SecureGenerator.insecure_seeded(5))
    p = stats.kstest(draws.numpy() / (scale * plan.share_std), "norm").pvalue
    assert bool(p < 1e-6) is found


def test_what_goes_on_inside_is_not_accounted_and_the_round_is_one_step(tmp_path: Path) -> None:
    chosen = settings(tmp_path, train__rate=0.25)
    plan, inner = plan_of(chosen), inner_plan(chosen)
    assert (plan.sampling_rate, plan.steps_per_round, plan.relation) == (1, 1, Relation.ZERO_OUT)
    assert (inner.sampling_rate, inner.steps_per_round) == (0.25, 4)
    assert inner.trust is Trust.OFF
    assert step_of_round(chosen) <= plan.share_std / 8


def test_the_claim_says_what_neighbours_are(tmp_path: Path) -> None:
    told = claim_of(plan_of(settings(tmp_path)), 3.0)
    assert "all that any single holder has" in told
    assert "zero-out: one holder's update replaced by zero" in told
    assert "add or remove" not in told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"privacy__trust": "local"}, "hidden in its own noise"),
        ({"privacy__delta": 0.05}, "one holder in a few could be shown"),
        ({"task__class_weights": "counted"}, "count each holder as one"),
        ({"round__holder_metric": "accuracy"}, "count each holder as one"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfideError, match=says) as caught:
        settings(tmp_path, **changes)
    assert caught.value.code == "settings.combination"


def test_no_plan_has_a_holder_for_unit_that_is_alone_or_sampled(plan: Plan) -> None:
    for wrong in (
        {"trust": Trust.LOCAL, "least": 1, "colluding": 0},
        {"sampling_rate": 0.5},
        {"relation": Relation.ADD_OR_REMOVE_ONE},
        {"unit": Unit.RECORD},
    ):
        with pytest.raises(ConfideError, match=r"privacy\.plan"):
            dataclasses.replace(plan, **wrong)
