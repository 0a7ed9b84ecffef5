"""Strict reading and writing of adapters, and the Hub format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from confide.common.adapter.schema import (
    adapter_parameters,
    get_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
)
from confide.common.errors import ConfideError
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from tests import tiny, warm


@pytest.fixture
def loaded(tiny_model: Path, tmp_path: Path) -> LoadedModel:
    return load_model(from_flat(tiny.config(tiny_model, tmp_path, tmp_path)))


def randomised(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(s, generator=generator) for n, s in loaded.schema.shapes}


def test_what_is_set_is_what_is_read(loaded: LoadedModel) -> None:
    adapter = randomised(loaded)
    live = adapter_parameters(loaded.model)
    set_adapter(loaded.model, adapter)
    assert all(torch.equal(t, adapter[n]) for n, t in get_adapter(loaded.model).items())
    now = adapter_parameters(loaded.model)
    assert all(now[n] is live[n] for n in live), "hooks and optimizers hang on these objects"


def test_ffa_trains_b_and_the_head_only(loaded: LoadedModel) -> None:
    assert loaded.schema.trained
    assert not any("lora_A" in name for name in loaded.schema.trained)
    frozen = {name for name, _ in loaded.schema.shapes} - loaded.schema.trained
    assert frozen
    assert all("lora_A" in name for name in frozen)


DEFECTS = {
    "adapter.names": lambda a: a.pop(next(iter(a))),
    "adapter.shape": lambda a: a.update({next(iter(a)): torch.zeros(1, 1)}),
    "adapter.dtype": lambda a: a.update({k: v.double() for k, v in list(a.items())[:1]}),
    "adapter.not-finite": lambda a: next(iter(a.values())).view(-1)[0].fill_(float("nan")),
}


@pytest.mark.parametrize("code", DEFECTS)
def test_a_defective_adapter_is_refused_and_the_model_stays(loaded: LoadedModel, code: str) -> None:
    before, adapter = get_adapter(loaded.model), randomised(loaded)
    DEFECTS[code](adapter)
    with pytest.raises(ConfideError) as caught:
        set_adapter(loaded.model, adapter)
    assert caught.value.code == code
    assert all(torch.equal(t, before[n]) for n, t in get_adapter(loaded.model).items())


def test_an_extra_tensor_is_refused(loaded: LoadedModel) -> None:
    base = "base_model.model.bert.embeddings.word_embeddings.weight"
    with pytest.raises(ConfideError, match=r"adapter\.names"):
        set_adapter(loaded.model, {**randomised(loaded), base: torch.zeros(2, 2)})


PLAIN_PEFT = """
import sys, torch
assert "confide" not in sys.modules
sys.modules["confide"] = None  # this process does not have confide
from transformers import AutoModelForTokenClassification
from peft import PeftModel
base = AutoModelForTokenClassification.from_pretrained(sys.argv[1], num_labels=2)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
ids = torch.tensor([[2, 5, 17, 3], [2, 18, 11, 3]])
with torch.no_grad():
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
torch.save(logits, sys.argv[3])
"""


def test_plain_peft_loads_the_adapter_with_equal_outputs(
    loaded: LoadedModel, tiny_model: Path, tmp_path: Path
) -> None:
    set_adapter(loaded.model, randomised(loaded))
    save_adapter(loaded.model, tmp_path / "adapter", "somebody/some-model")
    assert set(load_adapter(tmp_path / "adapter")) == {name for name, _ in loaded.schema.shapes}
    assert "somebody/some-model" in (tmp_path / "adapter" / "adapter_config.json").read_text()
    arguments = [str(tiny_model), str(tmp_path / "adapter"), str(tmp_path / "logits.pt")]
    done = warm.run(PLAIN_PEFT, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[2, 5, 17, 3], [2, 18, 11, 3]])
    with torch.no_grad():
        ours = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(ours, theirs)


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"adapter\.missing"):
        load_adapter(tmp_path)
