"""fedex and flora in a federation: exact rounds, weights that come back, a plain adapter."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification

from confide.common.adapter.schema import load_adapter, set_adapter, size_of, unflatten
from confide.common.errors import ConfideError
from confide.common.methods import METHODS
from confide.common.methods.products import based_on, merged_from, product_shapes
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.wire.messages import (
    Reply,
    TrainRequest,
    request_from_records,
    request_to_records,
)
from confide.server.checkpoint import load_checkpoint
from confide.server.predict import evaluate_run
from confide.server.run import run
from confide.server.run_folder import RunFolder
from tests import tiny
from tests.server.federated import Transport, config, events
from tests.server.test_methods import OFF
from tests.server.test_ranks import members

MERGING = [name for name, method in METHODS.items() if method.merges]
STEPS, LR, RANK, ALPHA = 2, 1.0, 2, 6
MIXED = {
    **OFF,
    "lora__rank": RANK,
    "lora__alpha": ALPHA,
    "lora__layers": 2,
    "round__mode": "steps",
    "round__count": 3,
    "train__steps": STEPS,
    "train__lr": LR,
}


def run_it(
    model: Path,
    data: Path,
    out: Path,
    kind: Any = Transport,
    ranks: tuple[int, ...] = (RANK,) * 3,
    **wanted: Any,
) -> tuple[RunFolder, Transport, LoadedModel]:
    transport = kind(members(data, out / "ledgers", ranks))
    flat = config(model, data, out / "runs", **{**MIXED, **wanted})
    return run(flat, transport), transport, load_model(from_flat(flat))


@pytest.mark.parametrize("method", MERGING)
def test_plain_peft_and_confide_load_what_the_run_has_learnt(
    method: str, tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    folder, _, loaded = run_it(tiny_model, tiny_federation, tmp_path, aggregate__method=method)
    shapes = product_shapes(loaded.schema)
    state = load_checkpoint(folder, loaded.schema, size_of(shapes))
    set_adapter(loaded.model, unflatten(state.adapter, loaded.schema.shapes))
    ids = torch.tensor([[2, 5, 17, 3], [2, 18, 11, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), based_on(loaded.model, loaded.schema, state.merged):
        ours = loaded.model(**inputs).logits
        before = loaded.model.disable_adapter()
        with before:
            untrained = loaded.model(**inputs).logits
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        base = AutoModelForTokenClassification.from_pretrained(str(tiny_model), num_labels=2)
        plain = PeftModel.from_pretrained(base, str(folder.path / "adapter")).eval()
    with torch.no_grad():
        theirs = plain(**inputs).logits
    assert torch.allclose(ours, theirs, atol=2e-6)
    assert not torch.allclose(ours, untrained, atol=1e-3)
    rank = plain.peft_config["default"].r
    assert rank > RANK
    assert rank == len(
        next(v for n, v in load_adapter(folder.path / "adapter").items() if "A" in n)
    )
    last = events(folder, "evaluation")[-1]
    assert evaluate_run(folder.path).loss == pytest.approx(last["loss"], rel=1e-4)


def test_a_checkpoint_with_added_weights_is_none_of_a_run_that_adds_nothing(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    folder, _, loaded = run_it(tiny_model, tiny_federation, tmp_path, aggregate__method="fedex")
    size = size_of(product_shapes(loaded.schema))
    assert load_checkpoint(folder, loaded.schema, size).merged.any()
    with pytest.raises(ConfideError, match=r"run\.resume"):
        load_checkpoint(folder, loaded.schema)


def test_what_was_added_goes_down_beside_the_adapter_and_is_part_of_the_task(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    folder, transport, loaded = run_it(
        tiny_model, tiny_federation, tmp_path, aggregate__method="fedex"
    )
    first, second, _ = transport.tasks
    size = size_of(product_shapes(loaded.schema))
    assert (len(first.merged), len(second.merged)) == (0, 4 * size)
    assert [e["bytes_down"] for e in events(folder, "round")] == [
        len(t.adapter) + len(t.merged) for t in transport.tasks
    ]
    assert request_from_records(request_to_records(second)) == second
    other = dataclasses.replace(second, merged=bytes(len(second.merged)))
    assert other.hash != second.hash
    assert dataclasses.replace(second, merged=b"").hash != second.hash


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"123", "wire.size"), ("nan", "adapter.not-finite"), ("long", "wire.size")],
    ids=str,
)
def test_what_was_added_is_read_strictly(payload: Any, code: str, tiny_model: Path) -> None:
    flat = config(tiny_model, tiny_model, tiny_model, **MIXED, aggregate__method="fedex")
    schema = load_model(from_flat(flat)).schema
    size = size_of(product_shapes(schema))
    values = torch.zeros(size + (payload == "long"))
    values[0] = math.nan if payload == "nan" else 0.0
    sent = payload if isinstance(payload, bytes) else values.numpy().tobytes()
    with pytest.raises(ConfideError) as caught:
        merged_from(sent, schema)
    assert caught.value.code == code
    assert not merged_from(b"", schema).any()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_weights_are_lent_and_come_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "m", kind)
    loaded = load_model(from_flat(config(model, model, model, **MIXED, aggregate__method="fedex")))
    random = torch.randn(loaded.schema.size, generator=torch.Generator().manual_seed(1))
    set_adapter(loaded.model, unflatten(random, loaded.schema.shapes))
    parameters = list(loaded.model.parameters())
    values = [p.clone() for p in parameters]
    shapes = product_shapes(loaded.schema)
    layers: dict[str, Any] = {path: loaded.model.get_submodule(path) for path, _ in shapes}
    kept = {path: layer.get_base_layer().weight.clone() for path, layer in layers.items()}
    merged = torch.randn(size_of(shapes))
    ids = torch.tensor([[2, 5, 17, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        before = loaded.model(**inputs).logits
        with based_on(loaded.model, loaded.schema, merged):
            lent = loaded.model(**inputs).logits
            for path, part in unflatten(merged, shapes).items():
                added = ALPHA / RANK * (part.t() if kind == "gpt2" else part)
                assert torch.equal(layers[path].get_base_layer().weight, kept[path] + added)
        assert torch.equal(loaded.model(**inputs).logits, before)
        assert not torch.allclose(lent, before, atol=1e-2)
    after = list(loaded.model.parameters())
    assert all(one is other for one, other in zip(parameters, after, strict=True))
    assert all(torch.equal(p, v) for p, v in zip(after, values, strict=True))


def test_an_adapter_that_would_be_absurdly_large_is_refused_before_the_run(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.common.methods.products.MOST_BYTES", 1000)
    with pytest.raises(ConfideError, match=r"aggregate\.size"):
        run_it(tiny_model, tiny_federation, tmp_path, aggregate__method="flora")


def test_weights_that_a_method_has_no_use_for_are_refused(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path
) -> None:
    class Adding(Transport):
        def ask(self, nodes: Any, task: TrainRequest, timeout: float) -> Mapping[int, Reply]:
            return super().ask(nodes, dataclasses.replace(task, merged=b"1234"), timeout)

    with pytest.raises(ConfideError, match=r"task\.merged"):
        run_it(tiny_model, tiny_federation, tmp_path, Adding, aggregate__method="lora")
