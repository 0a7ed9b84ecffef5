"""Local training against loops written by hand, and nothing that carries over between tasks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.client.training import trainer as trainer_module
from confide.client.training.trainer import Trainer, draws_from
from confide.common.adapter.schema import flatten, unflatten
from confide.common.errors import ConfideError
from confide.common.models import loading as models
from confide.common.models import trunk
from confide.common.models.batches import TOKENS_PER_BATCH, EncodedText, Room
from confide.common.models.loading import load_model
from confide.common.plans import plan_of
from confide.common.privacy.noise import SecureGenerator
from confide.common.privacy.plan import Plan, Trust
from confide.common.tasks.classification import Classification
from confide.server.gate import largest_norm
from tests.client.test_private_step import BATCH, CLIP, EXACT, Bench, clipped_sum, plan

SEED = 5
STEPS = 4
NOISE = 1.3


@pytest.fixture(autouse=True)
def fresh_models() -> Iterator[None]:
    """No model that another test has used."""
    models._load.cache_clear()
    yield
    models._load.cache_clear()


def trained_change(bench: Bench, text: EncodedText, used: Plan, seed: int = SEED) -> torch.Tensor:
    return Trainer(bench.loaded).train(
        bench.adapter, text, bench.settings, used, SecureGenerator.insecure_seeded(seed)
    )


def noise_of_a_step(bench: Bench, twin: SecureGenerator) -> torch.Tensor:
    """Standard normal (M,), drawn in the order in which a step draws it."""
    by_name: dict[str, torch.Tensor] = {}
    for name, parameter in bench.loaded.model.named_parameters():
        if parameter.requires_grad:
            saved = name.replace(".default", "").replace(".modules_to_save", "")
            draw = torch.from_numpy(twin.normal(parameter.numel()))
            by_name[saved] = draw.view_as(parameter)
    return flatten(by_name, bench.loaded.schema.trained_shapes)


def noisy(**changes: Any) -> Plan:
    return plan(trust=Trust.LOCAL, noise_multiplier=NOISE, **changes)


def test_gradient_mode_returns_minus_the_private_gradient(tiny_model: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_model, tmp_path)
    text, used = bench.text(12), noisy()
    twin = SecureGenerator.insecure_seeded(SEED)  # draws as the step does: batch, then noise
    used.draw(len(text), twin)
    noise = noise_of_a_step(bench, twin) * used.noise_std
    rows = bench.record_gradients(text)
    found = trained_change(bench, text, used)
    expected = -(clipped_sum(rows) + noise) / BATCH
    assert (found - expected).norm() <= EXACT * expected.norm()


def test_for_a_secure_sum_it_returns_the_sum_itself_before_anything_rounds_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    """With the share of the noise, undivided, in float64: no value of it fits a float32."""
    bench = Bench(tiny_model, tmp_path)
    shared = plan(trust=Trust.DISTRIBUTED, noise_multiplier=NOISE, least=8, colluding=4)
    text = bench.text(12)
    twin = SecureGenerator.insecure_seeded(SEED)
    shared.draw(len(text), twin)
    noise = noise_of_a_step(bench, twin) * shared.noise_std / 2
    found = trained_change(bench, text, shared)
    expected = -(clipped_sum(bench.record_gradients(text)) + noise)
    assert found.dtype == torch.float64
    assert (found - expected).norm() <= EXACT * expected.norm()
    assert float((found != found.float().double()).double().mean()) > 0.99


class Poisoned:
    """The task, failing over any batch that has a certain record in it, after its backward pass or
    before its forward one."""

    def __init__(self, bench: Bench, bad: int, where: str, patch: pytest.MonkeyPatch) -> None:
        marked = bench.text(12)._examples[bad].ids
        collate, losses = Classification.collate, Classification.losses
        here: list[bool] = []

        def watching(task: Any, examples: Any, place: Any) -> Any:
            here.append(any(example.ids == marked for example in examples))
            if where == "forward" and here[-1]:
                raise RuntimeError("it fails over this record")
            return collate(task, examples, place)

        def failing(task: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            each = losses(task, logits, targets)
            if where == "backward" and here[-1]:
                each.register_hook(lambda _: fail())
            return each

        patch.setattr(Classification, "collate", watching)
        patch.setattr(Classification, "losses", failing)


def fail() -> None:
    raise RuntimeError("it fails over this record")


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("units", [None, [[0, 1, 2], [3, 4], [], [5, 6, 7, 8, 9, 10, 11]]])
def test_a_unit_that_fails_by_itself_contributes_zero_and_the_others_what_they_would(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    units: list[list[int]] | None,
) -> None:
    bench = Bench(tiny_model, tmp_path, train__memory=1)
    bad = 4
    rest = [u for u in units or [[i] for i in range(12)] if bad not in u]

    def change(chosen: list[list[int]] | None) -> torch.Tensor:
        trainer = Trainer(bench.loaded)
        found = trainer.train(
            bench.adapter,
            bench.text(12),
            bench.settings,
            noisy(),
            SilentSource.insecure_seeded(SEED),
            units=chosen,
        )
        assert trainer.unusable == (chosen is units)
        return found

    expected = change(rest)
    Poisoned(bench, bad, where, monkeypatch)
    found = change(units)
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)
    assert found.any()


class SilentSource(SecureGenerator):
    """No noise, which the check of it is to let pass."""

    def normal(self, n: int) -> Any:
        return super().normal(n) * 0


@pytest.fixture(autouse=True)
def any_noise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "fails_by_itself" in request.node.name:
        monkeypatch.setattr("confide.client.training.private_step.check_noise", lambda _: None)
        monkeypatch.setattr(trainer_module, "_check_moved", lambda *_: None)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_local_steps_are_those_of_a_loop_written_by_hand(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    lr = 0.05
    bench = Bench(
        tiny_model,
        tmp_path,
        round__mode="steps",
        train__steps=STEPS,
        train__optimizer=name,
        train__lr=lr,
    )
    text, schema, start = bench.text(12), bench.loaded.schema, bench.adapter
    whole = unflatten(start.clone(), schema.shapes)
    values = flatten(whole, schema.trained_shapes).requires_grad_()
    before = values.detach().clone()
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = kinds[name]([values], lr=lr)
    for _ in range(STEPS):
        whole |= unflatten(values.detach().clone(), schema.trained_shapes)
        bench.adapter = flatten(whole, schema.shapes)
        values.grad = clipped_sum(bench.record_gradients(text)) / BATCH
        optimizer.step()
    bench.adapter = start
    found = trained_change(bench, text, plan(steps_per_round=STEPS))
    expected = values.detach() - before
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_proximal_step_is_pulled_back_after_clipping_and_noise(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """FedProx by hand: private gradient + mu (w - where the round began), the same noise."""
    lr, strength = 0.05, 20.0
    overrides = {"train__optimizer": name, "train__lr": lr, "train__proximal": strength}
    bench = Bench(tiny_model, tmp_path, round__mode="steps", train__steps=STEPS, **overrides)
    text, schema, start = bench.text(12), bench.loaded.schema, bench.adapter
    used, twin = noisy(steps_per_round=STEPS), SecureGenerator.insecure_seeded(SEED)
    whole = unflatten(start.clone(), schema.shapes)
    values = flatten(whole, schema.trained_shapes).requires_grad_()
    before = values.detach().clone()
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]([values], lr=lr)
    for _ in range(STEPS):
        used.draw(len(text), twin)
        whole |= unflatten(values.detach().clone(), schema.trained_shapes)
        bench.adapter = flatten(whole, schema.shapes)
        noise = noise_of_a_step(bench, twin) * used.noise_std
        private = (clipped_sum(bench.record_gradients(text)) + noise) / BATCH
        pull = strength * (values.detach() - before)
        values.grad = (private + pull).float()
        optimizer.step()
    assert float(pull.norm()) > CLIP / 2  # in a record's own gradient it would be cut
    bench.adapter = start
    found = trained_change(bench, text, used)
    expected = values.detach() - before
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_without_a_pull_the_steps_are_as_they_were_and_with_it_the_plan_is(
    tiny_model: Path, tmp_path: Path
) -> None:
    steps = {"round__mode": "steps", "train__steps": STEPS, "train__lr": 0.05}
    benches = [Bench(tiny_model, tmp_path, **steps, train__proximal=p) for p in (0.0, 5.0)]
    plans = [plan_of(bench.settings) for bench in benches]
    assert plans[0] == plans[1]
    used = noisy(steps_per_round=STEPS)
    free, pulled = (trained_change(bench, bench.text(12), used) for bench in benches)
    assert 0 < pulled.norm() < free.norm()
    sizes = [largest_norm(bench.settings, len(free)) for bench in benches]
    assert sizes[0] == sizes[1] > free.norm()


def adam(model: Path, scratch: Path) -> Bench:
    return Bench(
        model,
        scratch,
        round__mode="steps",
        train__steps=STEPS,
        train__optimizer="adam",
        train__lr=0.05,
    )


USED = noisy(steps_per_round=STEPS, sampling_rate=0.5)


def alone(model: Path, scratch: Path) -> torch.Tensor:
    """The change of the second holder in a process that has done nothing before."""
    models._load.cache_clear()
    bench = adam(model, scratch)
    return trained_change(bench, bench.text(10, seed=2), USED)


def test_nothing_carries_over_from_one_holder_to_the_next(tiny_model: Path, tmp_path: Path) -> None:
    expected = alone(tiny_model, tmp_path)
    models._load.cache_clear()
    bench = adam(tiny_model, tmp_path)
    other = bench.text(8, seed=1)
    for seed in (11, 12):
        trained_change(bench, other, USED, seed)
    assert torch.equal(trained_change(bench, bench.text(10, seed=2), USED), expected)


class BackwardFails(torch.autograd.Function):
    """A gradient that breaks after Opacus has seen part of the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> Any:
        raise RuntimeError("backward")


def fail_in_forward(*_: Any) -> Any:
    raise RuntimeError("after the forward pass")


def fail_in_backward(self: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return BackwardFails.apply(logits).sum(1)  # type: ignore[no-any-return]


def fail_in_the_second_chunk(self: Any, logits: torch.Tensor, targets: torch.Tensor) -> Any:
    if fail_in_the_second_chunk.calls:  # type: ignore[attr-defined]
        raise RuntimeError("second physical batch")
    fail_in_the_second_chunk.calls = 1  # type: ignore[attr-defined]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize("failure", [fail_in_forward, fail_in_backward, fail_in_the_second_chunk])
def test_a_task_that_fails_halfway_leaves_nothing_for_the_next(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    expected = alone(tiny_model, tmp_path)
    models._load.cache_clear()
    bench = adam(tiny_model, tmp_path)
    fail_in_the_second_chunk.calls = 0  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "losses", failure)
        patch.setattr(trainer_module, "Room", partial(Room, tokens=20))
        with pytest.raises(RuntimeError):
            trained_change(bench, bench.text(8, seed=1), noisy(steps_per_round=STEPS))
    assert leftovers(bench) == []
    assert torch.equal(trained_change(bench, bench.text(10, seed=2), USED), expected)


def test_a_model_that_fails_on_made_up_examples_is_named_before_anything_is_charged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """opacus#841's kind: ``holder.failed`` in every round, and no word of why."""
    models._load.cache_clear()
    bench = adam(tiny_model, tmp_path)
    monkeypatch.setattr(Classification, "losses", fail_in_forward)
    with pytest.raises(ConfideError, match=r"train\.self-check.*'bert' fails") as caught:
        Trainer(bench.loaded).prepare(bench.settings)
    assert "RuntimeError: after the forward pass" in caught.value.message
    assert leftovers(bench) == []


def leftovers(bench: Bench) -> list[str]:
    """What of a task's text is still on the model."""
    kept = ("grad", "grad_sample", "summed_grad")
    return [
        f"{name}.{k}"
        for name, parameter in bench.loaded.model.named_parameters()
        for k in kept
        if getattr(parameter, k, None) is not None
    ]


def test_after_a_task_nothing_of_its_text_is_on_the_model(tiny_model: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_model, tmp_path)
    trained_change(bench, bench.text(8), noisy())
    assert leftovers(bench) == []


def test_a_model_left_in_evaluation_mode_is_trained_all_the_same(
    tiny_model: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_model, tmp_path)
    text = bench.text(8)
    expected = trained_change(bench, text, noisy())
    bench.loaded.model.eval()
    assert torch.equal(trained_change(bench, text, noisy()), expected)


def test_a_tensor_that_stands_still_under_noise_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tiny_model, tmp_path)
    forgetful = trainer_module.trained_parameters
    monkeypatch.setattr(trainer_module, "trained_parameters", lambda model: forgetful(model)[:-1])
    with pytest.raises(ConfideError, match=r"train\.no-gradient"):
        trained_change(bench, bench.text(8), noisy())


def test_without_noise_an_empty_batch_changes_nothing_and_is_no_fault(
    tiny_model: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_model, tmp_path)
    found = trained_change(bench, bench.text(8), plan(sampling_rate=1e-12))
    assert torch.count_nonzero(found) == 0


def test_only_the_trained_part_changes(tiny_model: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_model, tmp_path)
    frozen = {n: p.clone() for n, p in bench.loaded.model.named_parameters() if not p.requires_grad}
    found = trained_change(bench, bench.text(8), noisy())
    assert found.shape == (bench.loaded.schema.trained_size,)
    after = dict(bench.loaded.model.named_parameters())
    written = {n for n in frozen if not torch.equal(frozen[n], after[n])}
    assert all("lora_A" in n for n in written), "the coordinator's A is written, nothing else"


def test_a_model_that_is_not_needed_any_more_is_freed(tiny_model: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_model, tmp_path)
    trained_change(bench, bench.text(4), noisy())
    gone = weakref.ref(bench.loaded.model)
    settings = bench.settings
    from tests.client import test_private_step

    test_private_step._TRAINERS.clear()
    del bench
    models._load.cache_clear()
    gc.collect()
    assert gone() is None
    assert load_model(settings) is load_model(settings)


PERSONS = [[0, 1, 2, 3, 4], [5], [6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("budget", [1, 20, 60, TOKENS_PER_BATCH])
def test_a_person_is_clipped_as_a_whole_however_the_batch_is_cut(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    bench = Bench(tiny_model, tmp_path)
    text = bench.text(12)
    rows = bench.record_gradients(text)
    expected = -clipped_sum(torch.stack([rows[unit].mean(0) for unit in PERSONS])) / BATCH
    monkeypatch.setattr(trainer_module, "Room", partial(Room, tokens=budget))
    found = Trainer(bench.loaded).train(
        bench.adapter,
        text,
        bench.settings,
        plan(),
        SecureGenerator.insecure_seeded(SEED),
        units=PERSONS,
    )
    assert (found - expected).norm() <= EXACT * expected.norm()


def test_of_a_person_no_more_records_are_used_than_allowed(
    tiny_model: Path, tmp_path: Path
) -> None:
    most = 2
    bench = Bench(
        tiny_model,
        tmp_path,
        privacy__unit="person",
        privacy__records_per_person=most,
        data__person="person",
    )
    text = bench.text(5)
    rows = bench.record_gradients(text)
    pairs = {
        pair: -clipped_sum(rows[list(pair)].mean(0, keepdim=True)) / BATCH
        for pair in combinations(range(5), most)
    }
    seen = set()
    for seed in range(12):
        found = Trainer(bench.loaded).train(
            bench.adapter,
            text,
            bench.settings,
            plan(),
            SecureGenerator.insecure_seeded(seed),
            units=[list(range(5))],
        )
        fits = [p for p, e in pairs.items() if (found - e).norm() <= EXACT * e.norm()]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 1, "not always the same ones"


def test_adding_a_person_moves_the_sum_by_at_most_the_clip_norm(
    tiny_model: Path, tmp_path: Path
) -> None:
    bench = Bench(tiny_model, tmp_path)
    text = bench.text(12)
    for size in (1, 3, 8):
        person, others = list(range(size)), [[8], [9, 10], [11]]
        sums = [
            BATCH
            * Trainer(bench.loaded).train(
                bench.adapter,
                text,
                bench.settings,
                plan(),
                SecureGenerator.insecure_seeded(SEED),
                units=units,
            )
            for units in ([*others, person], others)
        ]
        assert (sums[0] - sums[1]).norm() <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_bfloat16_model_trains_float32_values_with_nearly_the_same_gradients(
    tiny_model: Path, tmp_path: Path, layers: int
) -> None:
    changes = {}
    for dtype in ("float32", "bfloat16"):
        bench = Bench(tiny_model, tmp_path, model__dtype=dtype, lora__layers=layers)
        assert {p.dtype for p in bench.loaded.model.parameters()} == {torch.float32}
        changes[dtype] = trained_change(bench, bench.text(12), plan())
    exact, half = changes["float32"], changes["bfloat16"]
    assert 1e-5 < (half - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("fast", [True, False])
def test_the_processor_decides_on_bfloat16_where_it_is_asked_to(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(trunk, "fast_bfloat16", lambda: fast)
    assert Bench(tiny_model, tmp_path, model__dtype="auto").loaded.trunk.bfloat16 is fast
    assert not Bench(tiny_model, tmp_path).loaded.trunk.bfloat16


@pytest.mark.parametrize(
    "changes",
    [
        {"task__class_weights": "1,50"},
        {"task__loss": "focal"},
        {"task__copies": 3, "task__word_dropout": 1e-12},
        {"task__class_weights": "50,1", "task__copies": 2, "task__word_dropout": 1e-12},
    ],
)
def test_weights_and_copies_come_before_the_clipping_of_one_unit(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """With nothing left out, copies are the record itself, and never more than one clip norm."""
    bench = Bench(tiny_model, tmp_path, **changes)
    text = bench.text(12)
    rows = bench.record_gradients(text)
    if "task__class_weights" in changes:
        assert (rows.norm(dim=1) > CLIP).any(), "some of them must be clipped"
    expected = -clipped_sum(rows) / BATCH
    found = trained_change(bench, text, plan())
    assert (found - expected).norm() <= EXACT * expected.norm()


def test_a_class_that_is_left_out_contributes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_model, tmp_path, task__class_rates="1,1e-12")
    text = bench.text(12)
    first = [i for i, e in enumerate(text._examples) if e.target == 0]
    assert 0 < len(first) < 12
    expected = -clipped_sum(bench.record_gradients(text)[first]) / BATCH
    found = trained_change(bench, text, plan())
    assert (found - expected).norm() <= EXACT * expected.norm()


def test_each_use_of_a_record_has_numbers_of_its_own() -> None:
    draws = draws_from(SecureGenerator(), 100)
    seeds = {draws(place).initial_seed() for place in range(100)}
    assert len(seeds) == 100, "from a common source one record would change all others' masks"
    again = draws_from(SecureGenerator(), 100)
    assert seeds.isdisjoint(again(place).initial_seed() for place in range(100))
    copies = [torch.rand(8, generator=draws(3)).tolist() for _ in range(3)]
    assert len(set(map(tuple, copies))) == 3  # of one record, each used with other words


def test_what_is_drawn_for_a_record_does_not_depend_on_who_else_is_used() -> None:
    def first(order: list[int]) -> list[float]:
        draws = draws_from(SecureGenerator.insecure_seeded(SEED), 5)
        found = {place: torch.rand(1, generator=draws(place)).item() for place in order}
        return [found[0], found[4]]

    assert first([0, 1, 2, 3, 4]) == first([4, 0])
