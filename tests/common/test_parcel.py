"""What goes down: what is not as everybody has it, and a digest of the rest."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.common.adapter.encoding import HINT, Parcel, pack, sent_size, unpack
from confide.common.adapter.schema import AdapterSchema, flatten
from confide.common.errors import ConfideError

SHAPES = (("a", (2, 3)), ("b", (4,)), ("c", (1, 1)), ("d", ()))
SCHEMA = AdapterSchema(shapes=SHAPES, trained=frozenset({"b"}))


def initial(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES}


@given(changed=st.sets(st.sampled_from("abcd")))
@settings(max_examples=30, deadline=None)
def test_what_is_sent_and_what_is_known_are_the_whole_adapter(changed: set[str]) -> None:
    start = initial()
    adapter = flatten({n: t + 1 if n in changed else t for n, t in start.items()}, SHAPES)
    parcel = pack(SCHEMA, adapter, start)
    assert parcel.sent == "".join("1" if name in changed else "0" for name in "abcd")
    assert len(parcel.values) == sent_size(SCHEMA, parcel.sent)
    assert torch.equal(unpack(SCHEMA, parcel, initial()), adapter)


@pytest.mark.parametrize("value", [-0.0, math.nan, 1e-45])
def test_every_bit_of_a_value_counts(value: float) -> None:
    start = {name: torch.zeros(shape) for name, shape in SHAPES}
    changed = {**start, "b": torch.tensor([0.0, value, 0.0, 0.0])}
    parcel = pack(SCHEMA, flatten(changed, SHAPES), start)
    assert parcel.sent == "0100"
    found = unpack(SCHEMA, parcel, start)
    assert found.view(torch.int32).equal(flatten(changed, SHAPES).view(torch.int32))
    assert pack(SCHEMA, flatten(changed, SHAPES), changed).sent == "0000"


@pytest.mark.parametrize("name", ["a", "c", "d"])
def test_a_place_with_other_initial_values_refuses_and_says_what_to_do(name: str) -> None:
    start = initial()
    parcel = pack(SCHEMA, flatten({**start, "b": torch.ones(4)}, SHAPES), start)
    other = {**start, name: torch.nextafter(start[name], torch.tensor(9.0))}
    with pytest.raises(ConfideError) as caught:
        unpack(SCHEMA, parcel, other)
    assert caught.value.code == "task.initial"
    assert caught.value.hint == HINT
    assert "torch" in HINT


def test_what_was_sent_may_be_other_here() -> None:
    start = initial()
    adapter = flatten({**start, "b": torch.ones(4)}, SHAPES)
    parcel = pack(SCHEMA, adapter, start)
    assert torch.equal(unpack(SCHEMA, parcel, {**start, "b": torch.zeros(4)}), adapter)


@pytest.mark.parametrize("sent", ["", "010", "01000", "0200", "01 0"])
def test_tensors_that_the_schema_does_not_have_are_refused(sent: str) -> None:
    start = initial()
    rest = pack(SCHEMA, flatten({**start, "b": torch.ones(4)}, SHAPES), start).rest
    for refuse in (
        lambda: sent_size(SCHEMA, sent),
        lambda: unpack(SCHEMA, Parcel(sent, torch.ones(4), rest), start),
    ):
        with pytest.raises(ConfideError, match=r"task\.schema"):
            refuse()
