"""``lora.targets``: what a name, a pattern, ``all-linear`` and nothing at all stand for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers as t
from peft import LoraConfig, get_peft_model

from confide.common.errors import ConfideError
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from tests import tiny


def load(folder: Path, **changes: Any) -> LoadedModel:
    return load_model(from_flat(tiny.config(folder, folder, folder, **changes)))


def adapted(loaded: LoadedModel) -> set[str]:
    """The modules that have an adapter, by their own names."""
    ends = (".lora_A.weight", ".lora_B.weight")
    names = [name for name, _ in loaded.schema.shapes if name.endswith(ends)]
    return {n.removeprefix("base_model.model.").rpartition(".lora_")[0] for n in names}


def refused(folder: Path, targets: str, **changes: Any) -> ConfideError:
    with pytest.raises(ConfideError) as caught:
        load(folder, lora__targets=targets, **changes)
    assert caught.value.code == "settings.range"
    return caught.value


LAYER = "bert.encoder.layer.{}."
SIX = (
    "attention.self.query", "attention.self.key", "attention.self.value",
    "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip


def test_one_name_that_fits_nothing_refuses_all(tiny_model: Path) -> None:
    """peft#3554: only ``query`` was adapted, without a word."""
    error = refused(tiny_model, "query,valeu")
    assert "'valeu'" in error.message
    assert "'value'" in error.hint


def test_a_name_that_is_like_no_other_shows_what_there_is(tiny_model: Path) -> None:
    error = refused(tiny_model, "query,c_attn")
    assert "dense, key, query, value" in error.hint
    assert "all-linear" in error.hint


def test_a_name_must_fit_in_the_layers_that_are_adapted(tmp_path: Path) -> None:
    folder = tiny.save_task_model(tmp_path, "seq2seq")
    task = tiny.TASKS["seq2seq"]
    # T5 has its table of relative positions in the lowest layer alone.
    error = refused(folder, "q,relative_attention_bias", **task, lora__layers=1)
    assert "of the top 1 layers" in error.message
    assert adapted(load(folder, lora__targets="q,wo", **task, lora__layers=1))


@pytest.mark.parametrize("layers", [1, 2, 0])
def test_all_linear_takes_every_linear_layer_but_the_head(tiny_model: Path, layers: int) -> None:
    found = adapted(load(tiny_model, lora__targets="all-linear", lora__layers=layers))
    numbers = range(3 - layers, 3) if layers else range(3)
    assert found == {LAYER.format(n) + name for n in numbers for name in SIX}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "distilbert"])
def test_all_linear_is_pefts_own(kind: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path, kind)
    pooling = tiny.pooling_of(kind)
    loaded = load(folder, lora__targets="all-linear", lora__layers=0, task__pooling=pooling)
    base = t.AutoModel.from_pretrained(folder)
    config = LoraConfig(target_modules="all-linear", fan_in_fan_out=kind == "gpt2")
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by a name that is going to go.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        model = get_peft_model(base, config)
    names = {n.rpartition(".lora_A")[0] for n, _ in model.named_modules() if ".lora_A" in n}
    prefix = loaded.model.get_base_model().base_model_prefix
    assert adapted(loaded) == {n.replace("base_model.model", prefix) for n in names}


@pytest.mark.parametrize(
    ("pattern", "layers", "expected"),
    [
        (r".*\.(query|value)", 1, {2: ("self.query", "self.value")}),
        (r".*\.layer\.[01]\..*\.key", 0, {0: ("self.key",), 1: ("self.key",)}),
        (r"bert\.encoder\.layer\.2\.attention\.self\.(query|key)", 2,
         {2: ("self.query", "self.key")}),
    ],
)  # fmt: skip
def test_a_pattern_is_matched_against_whole_names(
    tiny_model: Path, pattern: str, layers: int, expected: dict[int, tuple[str, ...]]
) -> None:
    found = adapted(load(tiny_model, lora__targets=pattern, lora__layers=layers))
    names = {LAYER.format(n) + f"attention.{end}" for n, ends in expected.items() for end in ends}
    assert found == names


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r".*\.qurey$", "fits no module"),
        ("(query", "no regular expression"),
        (".*" + "a" * 600, "more than 500 characters"),
        # A coordinator's pattern is matched at every holder, which it must not hold up.
        ("(.|..)*[!?]", "too long"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(
    tiny_model: Path, pattern: str, words: str
) -> None:
    assert words in refused(tiny_model, pattern).message


def test_what_peft_refuses_is_told_in_its_words(tiny_model: Path) -> None:
    error = refused(tiny_model, "LayerNorm")
    assert "LayerNorm" in error.message
    assert "is not supported" in error.message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (t.DebertaV2Config(), {"query_proj", "value_proj"}),
        (t.GPTNeoXConfig(), {"query_key_value"}),
        (t.PhiConfig(), {"q_proj", "v_proj", "fc1", "fc2"}),  # all of these are PEFT's own
        (t.ElectraConfig(), {"query", "value"}),
        (t.ModernBertConfig(), {"Wqkv"}),  # and of these it has none
        (t.MPNetConfig(), {"q", "v"}),
        (t.XLMConfig(), {"q_lin", "v_lin"}),
        (t.NomicBertConfig(), {"q_proj", "v_proj"}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_without_targets_a_family_has_its_own(
    config: Any, expected: set[str], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "emb_dim": 16, "n_layers": 2, "n_heads": 2}  # fmt: skip
    size = tiny.save_tokenizer(tmp_path)
    known = {name: value for name, value in sizes.items() if hasattr(config, name)}
    special = {"vocab_size": size, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    small = type(config)(**known, **special, cls_token_id=2, sep_token_id=3)
    model = t.AutoModelForSequenceClassification.from_config(small)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, task__pooling="model", lora__layers=0)
    assert {name.rpartition(".")[2] for name in adapted(loaded)} == expected


def test_a_decoder_by_itself_is_not_adapted_where_it_would_look_at_an_encoder(
    tmp_path: Path,
) -> None:
    size = tiny.save_tokenizer(tmp_path)
    config = t.BartConfig(
        vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=2, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = adapted(load(tmp_path, **tiny.TASKS["causal"], lora__layers=1))
    assert {name.partition("layers.")[2] for name in found} == {
        "1.self_attn.q_proj", "1.self_attn.v_proj",
    }  # fmt: skip
