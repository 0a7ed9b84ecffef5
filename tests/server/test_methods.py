"""What goes down and what moves under single methods, and how rounds are made by plain autograd;
that every method is its formula is in tests/common/methods/test_contract.py."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.client.holder import Holder
from confide.common.adapter.schema import adapter_parameters, get_adapter, set_adapter, unflatten
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.wire.messages import TrainRequest
from confide.server.checkpoint import load_checkpoint
from confide.server.run import run
from confide.server.run_folder import RunFolder
from tests.server.federated import Transport, config, events, holders, received

RECORDS, ROUNDS, LR = 24, 4, 2.0
CLOSE = 1e-2  # relative, of each part; in float32, and the smallest are some 1e-6
OFF = {
    "privacy__trust": "off",
    "privacy__noise_multiplier": "auto",
    "privacy__clip": 1e6,  # so long that nothing is clipped
    "aggregate__optimizer": "none",
    "round__min_holders": 1,
    "round__count": ROUNDS,
    "train__batch": RECORDS,  # every record in every step
    "train__lr": LR,
}


def products(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the adapter does to each weight, and the head."""
    out = {name: value for name, value in adapter.items() if "lora_" not in name}
    for name, a in adapter.items():
        if "lora_A" in name:
            out[name] = adapter[name.replace("lora_A", "lora_B")].double() @ a.double()
    return out


def last_adapter(folder: RunFolder, loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return unflatten(load_checkpoint(folder, loaded.schema).adapter, loaded.schema.shapes)


def first_adapter(task: TrainRequest, loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return unflatten(received(task, loaded), loaded.schema.shapes)


def run_it(
    members: list[Holder], model: Path, data: Path, out: Path, **overrides: Any
) -> tuple[RunFolder, Transport]:
    transport = Transport(members)
    return run(config(model, data, out, **overrides), transport), transport


def _gradients(
    loaded: LoadedModel, text: EncodedText, adapter: dict[str, torch.Tensor], names: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Plain autograd over all records at once."""
    set_adapter(loaded.model, adapter)
    live = adapter_parameters(loaded.model)
    wanted = [live[name] for name in sorted(names)]
    flags = [parameter.requires_grad for parameter in live.values()]
    for parameter in live.values():
        parameter.requires_grad_(True)
    try:
        batch = text.together(range(RECORDS))
        loss = loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets).sum()
        found = torch.autograd.grad(loss, wanted)
    finally:
        for parameter, flag in zip(live.values(), flags, strict=True):
            parameter.requires_grad_(flag)
    return dict(zip(sorted(names), found, strict=True))


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("ffa", ["", "B head"]),
        ("fedsvd", ["A", "A B head"]),
        ("rolora", ["", "B head"]),
        ("lora", ["", "A B head"]),
    ],
)
def test_a_tensor_that_still_is_as_the_seed_made_it_is_not_sent_down(
    name: str, sent: list[str], tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    optimizer = "none" if name == "rolora" else "momentum"
    wanted = {"aggregate__method": name, "aggregate__optimizer": optimizer}
    members = holders(tiny_federation, tmp_path / "ledgers")
    folder, transport = run_it(members, tiny_model, tiny_federation, tmp_path / "runs", **wanted)
    loaded = load_model(from_flat(config(tiny_model, tiny_federation, tmp_path, **wanted)))
    for task, event, kinds in zip(transport.tasks, events(folder, "round"), sent, strict=True):
        marked = [s for s, mark in zip(loaded.schema.shapes, task.sent, strict=True) if mark == "1"]
        assert {_kind(name) for name, _ in marked} == set(kinds.split())
        values = sum(torch.Size(shape).numel() for _, shape in marked)
        assert event["bytes_down"] == len(task.adapter) == 4 * values


def _kind(name: str) -> str:
    return next((kind for kind in "AB" if f"lora_{kind}" in name), "head")


def test_rolora_moves_one_factor_in_a_round_and_sends_up_no_more(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    wanted = {"aggregate__method": "rolora", "aggregate__optimizer": "none", "round__count": 4}
    members = holders(tiny_federation, tmp_path / "ledgers")
    folder, transport = run_it(members, tiny_model, tiny_federation, tmp_path / "runs", **wanted)
    loaded = load_model(from_flat(config(tiny_model, tiny_federation, tmp_path, **wanted)))
    sent = [first_adapter(task, loaded) for task in transport.tasks]
    sent.append(last_adapter(folder, loaded))
    for number, (before, after) in enumerate(itertools.pairwise(sent), start=1):
        moves = "lora_B" if number % 2 else "lora_A"
        for name, value in before.items():
            rests = "lora_" in name and moves not in name
            assert torch.equal(value, after[name]) == rests, (number, name)
    (first, second, *_) = events(folder, "round")
    sizes = {
        moves: 4 * sum(v.numel() for n, v in sent[0].items() if "lora_" not in n or moves in n)
        for moves in ("lora_A", "lora_B")
    }
    assert (first["bytes_up"], second["bytes_up"]) == (sizes["lora_B"], sizes["lora_A"])
    (start,) = events(folder, "start")
    assert {4 * n for n in start["model"]["sent"]} == {first["bytes_up"], second["bytes_up"]}


def test_fedsvd_sends_orthonormal_rows_down_and_keeps_what_was_learnt(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    wanted = {"aggregate__method": "fedsvd"}
    members = holders(tiny_federation, tmp_path / "ledgers")
    folder, transport = run_it(members, tiny_model, tiny_federation, tmp_path / "runs", **wanted)
    loaded = load_model(from_flat(config(tiny_model, tiny_federation, tmp_path, **wanted)))
    for adapter in [first_adapter(t, loaded) for t in transport.tasks] + [
        last_adapter(folder, loaded)
    ]:
        for name, value in adapter.items():
            if "lora_A" in name:
                assert torch.allclose(value @ value.t(), torch.eye(len(value)), atol=1e-5)
    assert get_adapter(loaded.model).keys() == adapter.keys()
