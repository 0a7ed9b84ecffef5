"""The holder's own adapter of a run: for it alone, whole or not at all, and usable elsewhere."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification

from confide.__main__ import build_app, run
from confide.client.training.personal import (
    Kept,
    export_personal,
    load_personal,
    personal_file,
    save_personal,
)
from confide.common.adapter.schema import set_adapter
from confide.common.errors import ConfideError
from confide.common.methods import method_of
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from tests.client.conftest import Place, code

SETTINGS = {"aggregate__method": "fedsa", "aggregate__optimizer": "none", "round__mode": "steps"}


@pytest.fixture
def own(make_place: Callable[..., Place]) -> Place:
    return make_place(**SETTINGS)


def loaded_for(place: Place) -> LoadedModel:
    return load_model(from_flat(place.settings))


def task(place: Place, **changes: Any) -> Any:
    schema = method_of("fedsa").sent(loaded_for(place).schema).digest
    return place.task(**{"schema": schema, **changes})


def kept(place: Place) -> Path:
    return personal_file(place.site.ledger, "run-1")


def some(place: Place) -> Kept:
    generator = torch.Generator().manual_seed(5)
    shapes = loaded_for(place).schema.shapes
    adapter = {name: torch.randn(shape, generator=generator) for name, shape in shapes}
    return Kept(adapter=adapter, round=3, settings=place.settings)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfideError) as caught:
        call()
    assert caught.value.hint or caught.value.code == "task.run"
    return caught.value.code


def test_it_lies_beside_the_ledger_and_only_this_user_reads_it(own: Place) -> None:
    assert code(own.holder.handle(task(own))) == "update"
    path = kept(own)
    assert path == own.site.ledger.parent / "ledger.sqlite.personal" / "run-1.safetensors"
    assert [p.stat().st_mode & 0o777 for p in (path, path.parent)] == [0o600, 0o700]
    assert list(path.parent.iterdir()) == [path]
    found = load_personal(path, loaded_for(own).schema)
    assert found.round == 1
    assert found.settings == own.settings


def test_what_was_written_is_read_again_to_the_bit(own: Place) -> None:
    own.site.ledger.parent.mkdir(exist_ok=True)
    save_personal(kept(own), some(own))
    found = load_personal(kept(own), loaded_for(own).schema)
    assert (found.round, dict(found.settings)) == (3, own.settings)
    assert all(torch.equal(found.adapter[n], v) for n, v in some(own).adapter.items())


def cut_off(own: Place) -> None:
    kept(own).write_bytes(kept(own).read_bytes()[:-8])


def of_another_rank(own: Place) -> None:
    adapter = {n: torch.zeros(3, *v.shape[1:]) for n, v in some(own).adapter.items()}
    save_personal(kept(own), dataclasses.replace(some(own), adapter=adapter))


def not_a_number(own: Place) -> None:
    adapter = {n: torch.full_like(v, torch.nan) for n, v in some(own).adapter.items()}
    save_personal(kept(own), dataclasses.replace(some(own), adapter=adapter))


@pytest.mark.parametrize("damage", [cut_off, of_another_rank, not_a_number])
def test_a_damaged_one_is_refused_before_anything_is_charged(
    own: Place, damage: Callable[[Place], None]
) -> None:
    assert code(own.holder.handle(task(own))) == "update"
    damage(own)
    assert code(own.restart().handle(task(own, number=2))) == "personal.damaged"
    assert own.charges() == 1
    kept(own).unlink()
    assert code(own.restart().handle(task(own, number=2))) == "update"


def test_a_folder_that_cannot_be_written_releases_nothing(own: Place) -> None:
    kept(own).parent.write_text("in the way", encoding="utf-8")
    assert code(own.holder.handle(task(own))) == "personal.write"
    assert own.states()[-1] == "reserved"


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".x", "x" * 129, "a\n"])
def test_an_id_that_is_no_file_name_is_refused(own: Place, run_id: str) -> None:
    assert refused(lambda: personal_file(own.site.ledger, run_id)) == "task.run"


def test_no_other_method_keeps_anything(place: Place) -> None:
    assert code(place.holder.handle(place.task())) == "update"
    assert not kept(place).parent.exists()


def test_the_schema_of_all_that_is_trained_is_not_the_one_that_leaves(own: Place) -> None:
    whole = loaded_for(own).schema.digest
    assert code(own.holder.handle(task(own, schema=whole))) == "task.schema"


def test_plain_peft_loads_what_is_written_out(own: Place, tiny_model: Path, tmp_path: Path) -> None:
    personal = some(own)
    save_personal(kept(own), personal)
    assert export_personal(kept(own), tmp_path / "adapter") == 3
    loaded = loaded_for(own)
    set_adapter(loaded.model, personal.adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        base = AutoModelForTokenClassification.from_pretrained(str(tiny_model), num_labels=2)
        plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    ids = torch.tensor([[2, 5, 17, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, loaded.model(**inputs).logits)
    assert refused(lambda: export_personal(kept(own), tmp_path / "adapter")) == "personal.folder"
    missing = kept(own).with_name("no.safetensors")
    assert refused(lambda: export_personal(missing, tmp_path / "b")) == "personal.missing"


def test_the_command_writes_it(
    own: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_personal(kept(own), some(own))
    out = tmp_path / "adapter"
    words = ["confide", "client", "adapter", str(kept(own)), str(out), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    assert run(lambda: build_app()()) == 0
    assert json.loads(capsys.readouterr().out) == {"adapter": str(out), "round": 3}
    assert (out / "adapter_config.json").is_file()
