"""The private step against slow references: clipping, noise, empty and non-finite records."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from confide.client.training import trainer
from confide.client.training.private_step import PrivateOptimizer, check_noise
from confide.client.training.trainer import Trainer, _check_moved
from confide.common.adapter.schema import adapter_parameters, flatten, set_adapter, unflatten
from confide.common.errors import ConfideError
from confide.common.models.batches import EncodedText, Room, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.plans import most_units
from confide.common.privacy.noise import SecureGenerator
from confide.common.privacy.plan import Plan, Relation, Trust, Unit
from confide.common.settings import Settings, from_flat
from confide.common.tasks import task_for
from confide.common.text.readers import Record
from tests import tiny

CLIP = 0.5
BATCH = 16
EXACT = 1e-5  # relative, float32


def plan(**changes: Any) -> Plan:
    numbers: dict[str, Any] = {
        "unit": Unit.RECORD,
        "relation": Relation.ADD_OR_REMOVE_ONE,
        "trust": Trust.OFF,
        "clip_norm": CLIP,
        "noise_multiplier": 0.0,
        "sampling_rate": 1.0,
        "steps_per_round": 1,
        "max_rounds": 1,
        "delta": 1e-5,
    }
    return Plan(**{**numbers, **changes})


class Bench:
    """A tiny model with random adapter, its text, and a trainer; noise off unless asked for."""

    def __init__(self, model: Path, scratch: Path, **overrides: Any) -> None:
        overrides = {"train__batch": BATCH, **overrides}
        self.settings: Settings = from_flat(tiny.config(model, scratch, scratch, **overrides))
        self.loaded: LoadedModel = load_model(self.settings)
        self.task = task_for(self.settings.task)
        generator = torch.Generator().manual_seed(7)
        schema = self.loaded.schema
        self.adapter = 0.5 * torch.randn(schema.size, generator=generator)
        self.trainer = _trainer(self.loaded)

    def text(self, count: int, seed: int = 1) -> EncodedText:
        records = [Record(r["text"], r["label"], None) for r in tiny.rows(count, seed=seed)]
        return EncodedText(
            self.task.encode(records, self.loaded.tokenizer, self.loaded.max_length), self.loaded
        )

    def change(self, text: EncodedText, used: Plan) -> torch.Tensor:
        return self.trainer.train(
            self.adapter, text, self.settings, used, SecureGenerator.insecure_seeded(5)
        )

    def record_gradients(self, text: EncodedText) -> torch.Tensor:
        """The slow reference: one record at a time through plain autograd, (records, M)."""
        schema, model = self.loaded.schema, self.loaded.model
        set_adapter(model, unflatten(self.adapter, schema.shapes))
        rows = []
        model.eval()  # plain autograd: the engine keeps out of the way
        for index in range(len(text)):
            (batch,) = text.batches([index])
            for parameter in model.parameters():
                parameter.grad = None
            losses = self.task.losses(forward(self.loaded, self.task, batch), batch.targets)
            losses.sum().backward()
            rows.append(_gradient(self.loaded))
        model.train()
        return torch.stack(rows)


_TRAINERS: dict[int, Trainer] = {}


def _trainer(loaded: LoadedModel) -> Trainer:
    if id(loaded) not in _TRAINERS:
        _TRAINERS[id(loaded)] = Trainer(loaded)
    return _TRAINERS[id(loaded)]


def _gradient(loaded: LoadedModel) -> torch.Tensor:
    live, shapes = adapter_parameters(loaded.model), loaded.schema.trained_shapes
    return flatten({name: live[name].grad for name, _ in shapes}, shapes)


def clipped_sum(rows: torch.Tensor) -> torch.Tensor:
    norms = rows.double().norm(dim=1)
    return (rows.double() * (CLIP / norms).clamp(max=1.0).unsqueeze(1)).sum(0).float()


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_model, tmp_path)


@pytest.mark.parametrize("layers", [1, 0])
@pytest.mark.parametrize("method", ["ffa", "lora"])
def test_without_noise_the_step_is_the_clipped_sum_of_batch_of_one_gradients(
    tiny_model: Path, tmp_path: Path, method: str, layers: int
) -> None:
    bench = Bench(tiny_model, tmp_path, aggregate__method=method, lora__layers=layers)
    text = bench.text(12)
    rows = bench.record_gradients(text)
    assert (rows.norm(dim=1) > CLIP).any(), "the test must clip something"
    expected = -clipped_sum(rows) / BATCH
    found = bench.change(text, plan())
    assert (found - expected).norm() <= EXACT * expected.norm()


def test_physical_batches_do_not_change_the_logical_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = bench.text(12)
    whole = bench.change(text, plan())
    monkeypatch.setattr(trainer, "Room", partial(Room, tokens=20))
    assert len(list(text.batches(room=Room(tokens=20)))) > 4
    cut = bench.change(text, plan())
    assert (cut - whole).norm() <= 1e-6 * whole.norm()


def test_one_record_moves_the_clipped_sum_by_at_most_the_clip_norm(bench: Bench) -> None:
    for seed in range(20):
        text = bench.text(8, seed=seed)
        less = EncodedText(text._examples[1:], bench.loaded)
        moved = (bench.change(text, plan()) - bench.change(less, plan())) * BATCH
        assert moved.norm() <= CLIP * (1 + 1e-5)


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]


def optimizer_for(
    values: list[torch.nn.Parameter], used: Plan, generator: SecureGenerator | None = None
) -> PrivateOptimizer:
    sgd = torch.optim.SGD(values, lr=1.0)
    return PrivateOptimizer(sgd, used, 1, generator or SecureGenerator.insecure_seeded(1))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_non_finite_record_contributes_exactly_zero(poison: float) -> None:
    values = parameters((3, 2), (4,))
    generator = torch.Generator().manual_seed(0)
    honest = [torch.randn(5, *p.shape, generator=generator) for p in values]

    def step(with_bad: bool) -> tuple[list[torch.Tensor], int]:
        for p, g in zip(values, honest, strict=True):
            p.data.zero_()
            bad = torch.full((1, *p.shape), poison) if with_bad else g[:0]
            p.grad_sample = torch.cat([g.clone(), bad])
        optimizer = optimizer_for(values, plan())
        optimizer.step()
        return [p.detach().clone() for p in values], optimizer.non_finite

    (clean, none), (dirty, one) = step(False), step(True)
    assert (none, one) == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_an_empty_batch_is_a_step_of_pure_noise_and_leaves_the_model_alone() -> None:
    values = parameters((200, 100))
    used = plan(trust=Trust.LOCAL, noise_multiplier=2.0)
    optimizer_for(values, used, SecureGenerator()).finish()
    draws = values[0].detach().double().numpy().ravel() / (2.0 * CLIP)
    assert stats.kstest(draws, "norm").pvalue > 1e-6


def test_a_sum_is_cut_to_the_length_of_the_batch_and_neighbours_stay_neighbours() -> None:
    most = CLIP * most_units(BATCH)
    count = 2 * int(most_units(BATCH))  # far more than the divisor says, all in one direction

    def total(units: int, turn: float) -> torch.Tensor:
        (weight,) = columns = parameters((3,))
        sgd = torch.optim.SGD(columns, lr=1.0)
        optimizer = PrivateOptimizer(sgd, plan(), BATCH, SecureGenerator.insecure_seeded(1))
        rows = torch.zeros(units, 3)
        rows[:, 0] = 1e3
        rows[-1] = torch.tensor([math.cos(turn), math.sin(turn), 0.0]) * 1e3
        weight.grad_sample = rows
        optimizer.step()
        return weight.grad.double() * BATCH

    for units in (2, int(most_units(BATCH)), count):
        assert float(total(units, 0.0).norm()) == pytest.approx(min(CLIP * units, most), rel=1e-6)
    for turn in (0.0, 1.0, math.pi / 2, math.pi):
        moved = float((total(count, turn) - total(count - 1, 0.0)).norm())
        assert moved <= CLIP * (1 + 1e-6)


def noise_of(std_factor: float = 1.0) -> np.ndarray:
    """Draws that a step adds, in units of what the plan says it should add."""
    values = parameters((100, 100), (500, 20))
    used = plan(trust=Trust.LOCAL, noise_multiplier=1.5)
    optimizer = optimizer_for(values, used, SecureGenerator())
    optimizer.noise_multiplier *= std_factor
    for p in values:
        p.grad_sample = torch.zeros(3, *p.shape)
    optimizer.step()
    return torch.cat([p.detach().double().ravel() for p in values]).numpy() / used.noise_std


def test_the_noise_has_the_plans_standard_deviation_and_nothing_else() -> None:
    draws = noise_of()
    assert stats.kstest(draws, "norm").pvalue > 1e-6
    half = len(draws) // 2
    assert abs(np.corrcoef(draws[:half], draws[half:])[0, 1]) < 0.05  # 5 sd at 1e4 draws


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.5])
def test_the_noise_test_sees_a_wrong_standard_deviation(factor: float) -> None:
    assert stats.kstest(noise_of(factor), "norm").pvalue < 1e-6


def test_two_steps_and_two_holders_never_share_noise() -> None:
    a, b = noise_of(), noise_of()
    # Rounded to float32, a few of 4e8 pairs are equal by chance; shared noise would be all of them.
    assert np.intersect1d(a, b).size < len(a) // 100


def test_one_records_loss_does_not_depend_on_its_neighbours(bench: Bench) -> None:
    text = bench.text(6)
    set_adapter(bench.loaded.model, unflatten(bench.adapter, bench.loaded.schema.shapes))
    with torch.no_grad():
        alone = [
            bench.task.losses(forward(bench.loaded, bench.task, b), b.targets)
            for i in range(6)
            for b in text.batches([i])
        ]
        together = [
            bench.task.losses(forward(bench.loaded, bench.task, b), b.targets)
            for b in text.batches()
        ]
    assert torch.allclose(torch.cat(alone).sort()[0], torch.cat(together).sort()[0], atol=1e-5)


def test_a_poisson_run_counts_every_step_even_the_empty_ones(
    tiny_model: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_model, tmp_path, round__mode="steps", train__steps=30, train__lr=0.01)
    used = plan(trust=Trust.LOCAL, noise_multiplier=1.0, sampling_rate=0.05, steps_per_round=30)
    steps = []
    original = PrivateOptimizer.add_noise

    def counting(self: PrivateOptimizer) -> None:
        steps.append(1)
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivateOptimizer, "add_noise", counting)
        bench.change(bench.text(10), used)
    assert len(steps) == 30


@pytest.mark.parametrize("size", [1e25, 3e38])
def test_a_finite_gradient_of_any_size_is_clipped_and_no_more(size: float) -> None:
    (value,) = parameters((4,))
    value.grad_sample = torch.full((1, 4), size)  # type: ignore[attr-defined]
    optimizer = optimizer_for([value], plan())
    optimizer.step()
    assert optimizer.non_finite == 0
    assert value.detach().norm() == pytest.approx(CLIP, rel=EXACT)


ODD_DRAWS = (0.9, 1.1, 0.0)  # times an honest draw


def test_noise_of_another_size_is_refused_before_it_is_added() -> None:
    draw = torch.from_numpy(SecureGenerator.insecure_seeded(3).normal(20_000))
    check_noise(draw)
    check_noise(draw[:1])
    check_noise(draw[:0])
    for factor in ODD_DRAWS:
        with pytest.raises(ConfideError, match=r"train\.noise"):
            check_noise(factor * draw)


def test_a_clipped_gradient_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (value,) = parameters((4,))
    optimizer = optimizer_for([value], plan())
    value.grad_sample = 100 * torch.ones(3, 4)  # type: ignore[attr-defined]
    monkeypatch.setattr(optimizer, "max_grad_norm", _Shorter(CLIP))
    with pytest.raises(ConfideError, match=r"train\.clip"):
        optimizer.step()


class _Shorter(float):
    """A clip norm whose product, the bound, is half of what it is everywhere else."""

    def __mul__(self, other: float) -> float:
        return float(self) / 2 * other


@pytest.mark.parametrize("part", [1, 20, 1 << 22])  # one column at a time, two, all
def test_however_the_rows_are_cut_the_sum_is_the_same(
    monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("confide.client.training.private_step._PART", part)
    values = parameters((3, 2), (4,))
    generator = torch.Generator().manual_seed(2)
    for value in values:
        value.grad_sample = torch.randn(9, *value.shape, generator=generator)  # type: ignore[attr-defined]
    rows = torch.cat([value.grad_sample.flatten(1) for value in values], dim=1)  # type: ignore[attr-defined]
    optimizer_for(values, plan()).step()
    found = -torch.cat([value.detach().flatten() for value in values])
    assert (found - clipped_sum(rows)).norm() <= EXACT * found.norm()


def test_a_unit_is_clipped_as_the_mean_of_its_records_wherever_they_came() -> None:
    (value,) = parameters((4,))
    generator = torch.Generator().manual_seed(4)
    records = 3 * torch.randn(6, 4, generator=generator)
    owners = torch.tensor([0, 1, 1, 0, 1, 2])
    records[owners == 0] /= 100  # short enough not to be clipped: only there do mean and sum differ
    sizes = torch.tensor([2, 3, 1])
    means = torch.stack([records[owners == u].mean(0) for u in range(3)])
    assert (means.norm(dim=1) > CLIP).tolist() == [False, True, True]
    expected = clipped_sum(means)
    optimizer = optimizer_for([value], plan())
    value.grad_sample = records.clone()  # type: ignore[attr-defined]
    optimizer.fold(owners, sizes)
    optimizer.step()
    assert (-value.detach() - expected).norm() <= EXACT * expected.norm()


def test_a_unit_in_two_physical_batches_is_clipped_once_and_only_when_whole() -> None:
    (value,) = parameters((4,))
    records = 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(4))
    expected = clipped_sum(records.mean(0, keepdim=True))
    optimizer = optimizer_for([value], plan())
    sizes = torch.tensor([5])
    value.grad_sample = records[:3].clone()  # type: ignore[attr-defined]
    optimizer.fold(torch.zeros(3, dtype=torch.long), sizes, whole=False)
    with pytest.raises(ConfideError, match=r"train\.unit"):
        optimizer.step()
    optimizer.zero_grad()
    value.grad_sample = records[3:].clone()  # type: ignore[attr-defined]
    optimizer.fold(torch.zeros(2, dtype=torch.long), sizes)
    optimizer.step()
    assert (-value.detach() - expected).norm() <= EXACT * expected.norm()


def test_a_model_that_no_gradient_reaches_is_refused() -> None:
    with pytest.raises(ConfideError, match=r"train\.no-gradient"):
        _check_moved(torch.ones(3), torch.ones(3))


PAIRS = 1000
SLACK = 1e-6  # of the clip norm, for the rounding of float32
SMALL_BATCH, DEMO_BATCH = 16, 320
SHAPES = ((3, 2), (4,))
SCALES = (-6.0, 6.0)  # of a record's gradient, powers of ten
# One coordinate of a record, or all of it.
ODD = (0.0, math.nan, math.inf, -math.inf, 1e-30, 1e25, 3e38)


def any_records(count: int, draw: torch.Generator) -> list[torch.Tensor]:
    """Gradients of ``count`` records, one in three of them odd; those of one sign add up worst."""
    low, high = SCALES
    scale = 10 ** (low + (high - low) * torch.rand(count, generator=draw))
    one_sign = bool(torch.randint(2, (1,), generator=draw))
    columns = []
    for shape in SHAPES:
        normal = torch.randn(count, *shape, generator=draw)
        normal = normal.abs() if one_sign else normal
        columns.append(normal * scale.view(-1, *(1 for _ in shape)))
    for index in range(count):
        kind = int(torch.randint(3 * len(ODD), (1,), generator=draw))
        if kind < len(ODD):
            whole = bool(torch.randint(2, (1,), generator=draw))
            columns[0][index, slice(None) if whole else 0] = ODD[kind]
            if whole:
                columns[1][index] = ODD[kind]
    return columns


def released(columns: list[torch.Tensor], chosen: slice) -> torch.Tensor:
    """The clipped sum before noise, float64."""
    values = parameters(*SHAPES)
    optimizer = optimizer_for(values, plan())
    for parameter, column in zip(values, columns, strict=True):
        parameter.grad_sample = column[chosen].clone()
    optimizer.clip_and_accumulate()
    sums = [p.summed_grad.double().flatten() for p in values]
    assert all(bool(torch.isfinite(s).all()) for s in sums)
    return torch.cat(sums)


def largest_move(batch: int) -> float:
    """Over 1,000 pairs of neighbours, in units of the clip norm."""
    draw = torch.Generator().manual_seed(batch)
    moves = []
    for _ in range(PAIRS):
        columns = any_records(int(torch.randint(1, batch + 1, (1,), generator=draw)), draw)
        without_first, whole = released(columns, slice(1, None)), released(columns, slice(None))
        moves.append(float((whole - without_first).norm()) / CLIP)
    return max(moves)


@pytest.mark.parametrize("batch", [SMALL_BATCH, DEMO_BATCH])
def test_neighbours_differ_by_at_most_the_clip_norm_whatever_their_gradients(batch: int) -> None:
    found = largest_move(batch)
    assert 0.9 < found <= 1 + SLACK, "and some record must have been clipped"
