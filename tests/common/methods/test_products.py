"""fedex and flora against dense float64 arithmetic on random adapters."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.common.adapter.schema import AdapterSchema, flatten, unflatten
from confide.common.methods import Arrived, method_of
from confide.common.methods.products import factored, product_shapes
from confide.common.methods.ranks import at_rank, padded

LAYERS = ("one", "two")
HEAD = "m.classifier.weight"
METHODS = ("fedex", "flora")
CLOSE = 1e-5  # of float32, relative to the longest of what is summed

ranks = st.integers(1, 5)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))  # in, out
seeds = st.integers(0, 2**20)


def schema(rank: int, size: tuple[int, int]) -> AdapterSchema:
    wide, out = size
    shapes: list[tuple[str, tuple[int, ...]]] = [(HEAD, (3, wide))]
    for layer in LAYERS:
        shapes += [
            (f"{layer}.lora_A.weight", (rank, wide)),
            (f"{layer}.lora_B.weight", (out, rank)),
        ]
    return AdapterSchema(shapes=tuple(shapes), trained=frozenset(name for name, _ in shapes))


def draw(seed: int, of: AdapterSchema) -> dict[str, torch.Tensor]:
    vector = torch.randn(of.size, generator=torch.Generator().manual_seed(seed))
    return unflatten(vector, of.shapes)


@dataclass(frozen=True)
class Moved:
    adapter: dict[str, torch.Tensor]
    merged: dict[str, torch.Tensor]


def merge(
    method: str,
    adapter: dict[str, torch.Tensor],
    changes: dict[str, dict[str, torch.Tensor]],
    merged: dict[str, torch.Tensor],
    *,
    seed: str,
) -> Moved:
    """A round of the method, by names."""
    shapes = tuple((name, tuple(value.shape)) for name, value in adapter.items())
    of = AdapterSchema(shapes=shapes, trained=frozenset(adapter))
    added = product_shapes(of)
    arrived = Arrived(
        schema=of,
        adapter=flatten(adapter, shapes),
        changes={who: flatten(change, shapes) for who, change in changes.items()},
        merged=flatten(merged, added),
        step=1.0,
        seed=seed,
    )
    found = method_of(method).combine(arrived)
    assert found is not None
    return Moved(unflatten(found.adapter, shapes), unflatten(found.merged, added))


def product(adapter: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    a, b = adapter[f"{layer}.lora_A.weight"], adapter[f"{layer}.lora_B.weight"]
    return b.double() @ a.double()


def moved(adapter: dict[str, torch.Tensor], change: dict[str, torch.Tensor]) -> dict:  # type: ignore[type-arg]
    return {name: value.double() + change[name].double() for name, value in adapter.items()}


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(rank=ranks, size=sizes, seed=seeds, holders=st.integers(1, 5))
def test_base_and_adapter_move_by_the_mean_of_the_products_exactly(
    method: str, rank: int, size: tuple[int, int], seed: int, holders: int
) -> None:
    of = schema(rank, size)
    adapter = draw(seed, of)
    changes = {f"holder-{h}": draw(seed + 1 + h, of) for h in range(holders)}
    wide, out = size
    before = {layer: torch.randn(out, wide) for layer in LAYERS}
    found = merge(method, adapter, changes, before, seed="0/1")
    for layer in LAYERS:
        mean = sum(product(moved(adapter, c), layer) for c in changes.values()) / holders
        total = found.merged[layer].double() + product(found.adapter, layer)
        expected = before[layer].double() + mean
        assert torch.allclose(
            total, expected, rtol=0, atol=CLOSE * (1 + float(expected.abs().max()))
        )
    head = adapter[HEAD] + sum(c[HEAD] for c in changes.values()) / holders
    assert torch.allclose(found.adapter[HEAD], head, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_neither_the_holders_order_nor_a_second_time_changes_a_bit(method: str) -> None:
    of = schema(3, (6, 5))
    changes = {f"holder-{h}": draw(h, of) for h in range(5)}
    before = {layer: torch.zeros(5, 6) for layer in LAYERS}
    one = merge(method, draw(9, of), changes, before, seed="0/1")
    other = merge(method, draw(9, of), dict(reversed(changes.items())), before, seed="0/1")
    for name, value in {**one.adapter, **one.merged}.items():
        assert torch.equal(value, {**other.adapter, **other.merged}[name])


def test_fedex_keeps_the_means_of_the_factors() -> None:
    of = schema(2, (6, 5))
    adapter, changes = draw(0, of), {"a": draw(1, of), "b": draw(2, of)}
    found = merge("fedex", adapter, changes, {n: torch.zeros(5, 6) for n in LAYERS}, seed="")
    for name, value in found.adapter.items():
        mean = adapter[name] + (changes["a"][name] + changes["b"][name]) / 2
        assert torch.allclose(value, mean, atol=1e-6)


def test_flora_begins_anew_with_another_a_in_each_round_and_layer() -> None:
    of = schema(2, (400, 5))
    none = {layer: torch.zeros(5, 400) for layer in LAYERS}
    first, second = (
        merge("flora", draw(0, of), {"a": draw(1, of)}, none, seed=s).adapter
        for s in ("0/1", "0/2")
    )
    for layer in LAYERS:
        assert not first[f"{layer}.lora_B.weight"].any()
        a = first[f"{layer}.lora_A.weight"]
        assert not torch.allclose(a, second[f"{layer}.lora_A.weight"], atol=1e-3)
        assert float(a.abs().max()) <= 1 / 20
        assert float(a.std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.1)
    assert not torch.equal(first["one.lora_A.weight"], first["two.lora_A.weight"])


@settings(max_examples=40, deadline=None)
@given(whole=ranks, size=sizes, seed=seeds, own=st.lists(ranks, min_size=1, max_size=4))
def test_flora_adds_up_holders_of_every_rank(
    whole: int, size: tuple[int, int], seed: int, own: list[int]
) -> None:
    """What is sent down has B at zero, so that a change of a smaller rank is a whole product."""
    of = schema(whole, size)
    adapter = draw(seed, of)
    for layer in LAYERS:
        adapter[f"{layer}.lora_B.weight"].zero_()
    changes, means = {}, {layer: torch.zeros(size[::-1]).double() for layer in LAYERS}
    for number, rank in enumerate(own):
        small = at_rank(of, min(rank, whole))
        change = draw(seed + 1 + number, small)
        mine = {n: adapter[n][tuple(map(slice, s))] for n, s in small.shapes}
        for layer in LAYERS:
            means[layer] += product(moved(mine, change), layer) / len(own)
        flat = torch.cat([change[n].flatten() for n, _ in small.shapes])
        changes[str(number)] = unflatten(padded(flat, small.shapes, of.shapes), of.shapes)
    found = merge(
        "flora", adapter, changes, {n: torch.zeros(size[::-1]) for n in LAYERS}, seed="0/1"
    )
    for layer, mean in means.items():
        assert torch.allclose(found.merged[layer].double(), mean, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(rank=ranks, size=sizes, seed=seeds, scale=st.sampled_from([0.25, 1.0, 2.0]))
def test_the_written_adapter_has_the_same_products_to_the_rounding_of_float32(
    rank: int, size: tuple[int, int], seed: int, scale: float
) -> None:
    adapter, (wide, out) = draw(seed, schema(rank, size)), size
    merged = {"one": torch.randn(out, wide), "two": torch.zeros(out, wide)}
    written = factored(adapter, merged, scale)
    assert torch.equal(written[HEAD], adapter[HEAD])
    for layer in LAYERS:
        expected = scale * (merged[layer].double() + product(adapter, layer))
        size_of_it = float(torch.linalg.matrix_norm(expected, 2))
        apart = product(written, layer) - expected
        assert float(torch.linalg.matrix_norm(apart, 2)) <= 1e-6 * size_of_it
        assert len(written[f"{layer}.lora_A.weight"]) <= min(wide, out)
        assert written[f"{layer}.lora_A.weight"].dtype == torch.float32


def test_the_written_adapter_is_no_wider_than_it_must_be() -> None:
    adapter = draw(0, schema(2, (8, 9)))
    none = {layer: torch.zeros(9, 8) for layer in LAYERS}
    assert factored(adapter, none, 1.0)["one.lora_A.weight"].shape == (2, 8)
    for layer in LAYERS:
        adapter[f"{layer}.lora_B.weight"].zero_()
    written = factored(adapter, none, 1.0)
    assert written["one.lora_A.weight"].shape == (1, 8)
    assert not product(written, "one").any()
