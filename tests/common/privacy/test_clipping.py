"""A clip norm that follows the updates: what its bit costs, and which way it goes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from confide.client.training.private_step import noised_update, with_bit
from confide.common.errors import ConfideError
from confide.common.plans import bit_of, plan_of
from confide.common.privacy.clipping import (
    bit_length,
    longest_with_bit,
    next_clip,
    share_that_fits,
)
from confide.common.privacy.noise import SecureGenerator
from confide.common.settings import Settings, from_flat
from tests import tiny

SHARED: dict[str, Any] = {
    "privacy__trust": "distributed",
    "privacy__unit": "holder",
    "privacy__colluding": 1,
    "privacy__noise_multiplier": 2.0,
    "privacy__clip": 0.5,
    "privacy__clip_quantile": 0.5,
    "round__min_holders": 3,
    "round__mode": "steps",
    "privacy__delta": 1e-2,
}


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return from_flat(tiny.config(tmp_path, tmp_path, tmp_path, **(SHARED | changes)))


@pytest.mark.parametrize("least", [2, 8, 80, 800, 8000])
@pytest.mark.parametrize("z", [0.3, 1.0, 6.0])
@pytest.mark.parametrize("clip", [1e-3, 1.0, 50.0])
def test_both_mechanisms_together_cost_what_the_plan_charges(
    least: int, z: float, clip: float
) -> None:
    """Theorem 1 of Andrew et al.: multipliers of the update and of the bit, whose sensitivity is a
    half as it is centred, compose to z^-2 = z_update^-2 + (2 s)^-2."""
    noise = z * longest_with_bit(clip, z, least)
    update = noise / clip
    count = noise / (2 * bit_length(clip, z, least))  # on the number that fits
    assert update**-2 + (2 * count) ** -2 == pytest.approx(z**-2, rel=1e-12)
    assert count == pytest.approx(max(least / 20, 1.6 * z))
    assert z < update < 1.055 * z


@pytest.mark.parametrize("length", [0.0, 0.1, 0.5, 0.500001, 7.0, 1e20, math.nan, math.inf])
def test_an_update_with_its_bit_is_never_longer_than_the_plans_norm(
    tmp_path: Path, length: float
) -> None:
    chosen = settings(tmp_path)
    plan, bit = plan_of(chosen), bit_of(chosen)
    change = torch.zeros(9)
    change[4] = length
    told = with_bit(change, 0.5, bit)
    assert told.shape == (10,)
    assert float(told.norm()) <= plan.clip_norm * (1 + 1e-12)
    assert float(told[-1]) == pytest.approx(bit if length <= 0.5 else -bit)
    assert float(told[:-1].norm()) == pytest.approx(min(length, 0.5) if length < 1e30 else 0.0)


def test_the_noise_is_of_the_plan_and_the_bit_has_it_too(tmp_path: Path) -> None:
    plan = plan_of(settings(tmp_path))
    assert plan.noise_multiplier == 2.0
    assert plan.share_std == pytest.approx(2.0 * plan.clip_norm / math.sqrt(2))
    told = with_bit(torch.zeros(20_000), 0.5, bit_of(settings(tmp_path)))
    generator = SecureGenerator.insecure_seeded(3)
    draws = torch.stack([noised_update(told, plan, generator)[-50:] for _ in range(40)])
    assert float((draws - told[-50:]).std()) == pytest.approx(plan.share_std, rel=0.08)


def test_more_that_fit_than_wanted_make_the_norm_less() -> None:
    assert next_clip(1.0, 1.0, 0.5) == pytest.approx(math.exp(-0.1))
    assert next_clip(1.0, 0.0, 0.5) == pytest.approx(math.exp(0.1))
    assert next_clip(1.0, 0.5, 0.5) == 1.0
    assert next_clip(1e6, 0.0, 0.9) == 1e6
    assert next_clip(1e-6, 1.0, 0.1) == 1e-6


@pytest.mark.parametrize("fit", [0, 3, 10])
def test_the_share_that_fits_comes_out_of_the_sum(fit: int) -> None:
    assert share_that_fits(0.2 * (fit - (10 - fit)), 0.2, 10) == pytest.approx(fit / 10)
    assert share_that_fits(1e9, 0.2, 10) == 1.0
    assert share_that_fits(-1e9, 0.2, 10) == 0.0


def test_it_finds_the_quantile_of_lengths_that_stay_as_they_are() -> None:
    lengths, clip = np.geomspace(0.01, 1.0, 101), 3.0
    for _ in range(200):
        clip = next_clip(clip, float((lengths <= clip).mean()), 0.8)
    assert clip == pytest.approx(float(np.quantile(lengths, 0.8)), rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__unit": "record"},
        {"privacy__trust": "off", "privacy__noise_multiplier": "auto"},
    ],
)
def test_it_is_for_whole_updates_behind_masks(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfideError, match=r"clip-quantile = 0\.5 is for whole updates"):
        settings(tmp_path, **({"round__mode": "gradient"} | changes))
