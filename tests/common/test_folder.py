"""Model folders that cannot be trained are named at once, before their weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from confide.common.errors import ConfideError
from confide.common.models.folder import positions, without_chance
from confide.common.models.loading import LoadedModel, check_model, load_model
from confide.common.settings import from_flat
from tests import tiny


def load(folder: Path, **changes: Any) -> LoadedModel:
    return load_model(from_flat(tiny.config(folder, folder, folder, **changes)))


def refused(folder: Path, code: str, **changes: Any) -> ConfideError:
    """The refusal; no weights are needed for it."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfideError) as caught:
        load(folder, **changes)
    with pytest.raises(ConfideError) as early:
        check_model(from_flat(tiny.config(folder, folder, folder, **changes)))
    assert (caught.value.code, str(early.value)) == (code, str(caught.value))
    return caught.value


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "quantised",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "fp8"},
    ],
    ids=lambda value: value["quant_method"],
)
def test_quantised_weights_are_named(tmp_path: Path, quantised: dict[str, Any]) -> None:
    folder = tiny.save_model(tmp_path)
    edit(folder / "config.json", quantization_config=quantised)
    error = refused(folder, "model.quantised")
    assert quantised["quant_method"] in error.message
    assert "dequantize" in error.hint


@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_the_model_does_not_embed_are_named(tmp_path: Path, special: bool) -> None:
    """llama-cookbook#189: a padding token was added, the embedding stayed as it was."""
    folder = tiny.save_model(tmp_path)
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    size = len(tokenizer)
    if special:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    else:
        tokenizer.add_tokens(["carcinoma"])
    tokenizer.save_pretrained(folder)
    error = refused(folder, "model.vocabulary")
    assert ("<pad>" if special else "carcinoma") in error.message
    assert f"0 to {size - 1}" in error.message
    assert "resize_token_embeddings" in error.hint


def test_the_way_out_of_a_small_embedding_is_one(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path)
    tokenizer, model = t.AutoTokenizer.from_pretrained(folder), t.AutoModel.from_pretrained(folder)
    tokenizer.add_tokens(["carcinoma"])
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    assert load(folder).model.config.vocab_size == len(tokenizer)


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A Gemma 3 for text and images."""
    size = tiny.save_tokenizer(tmp_path)
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
            "num_key_value_heads": 1, "intermediate_size": 32, "vocab_size": size,
            "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
            "eos_token_id": 3}  # fmt: skip
    image = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = t.Gemma3Config(text_config=text, vision_config=image, mm_tokens_per_image=4)
    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_config_in_a_config_is_named(gemma: Path) -> None:
    """transformers#36683."""
    error = refused(gemma, "model.nested", **tiny.TASKS["causal"])
    assert "gemma3_text" in error.message


def test_the_way_out_of_a_nested_model_is_one(gemma: Path, tmp_path: Path) -> None:
    new = tmp_path / "text"
    t.AutoModel.from_pretrained(gemma).language_model.save_pretrained(new)
    t.AutoTokenizer.from_pretrained(gemma).save_pretrained(new)
    assert load(new, **tiny.TASKS["causal"]).model.config.model_type == "gemma3_text"


def test_nothing_is_drawn_at_random_in_training() -> None:
    """transformers#29429: router jitter made every record's gradient another one each time."""
    config = t.MixtralConfig(router_jitter_noise=0.3, attention_dropout=0.1)
    pair = t.BartConfig(encoder_layerdrop=0.2, decoder_layerdrop=0.2, dropout=0.1)
    for one in (config, pair):
        without_chance(one)
    assert (config.router_jitter_noise, config.attention_dropout) == (0.0, 0.0)
    assert (pair.encoder_layerdrop, pair.decoder_layerdrop, pair.dropout) == (0.0, 0.0, 0.0)


def test_what_attends_in_drawn_blocks_attends_in_full() -> None:
    config = t.BigBirdConfig()
    without_chance(config)
    assert config.attention_type == "original_full"


def test_a_threshold_that_is_called_jitter_stays() -> None:
    config = t.PhimoeConfig(router_jitter_noise=0.01)
    without_chance(config)
    assert config.router_jitter_noise == 0.01


def test_inner_configurations_are_looked_at() -> None:
    inner = t.BertConfig(hidden_dropout_prob=0.3)
    pair = t.EncoderDecoderConfig(encoder=inner.to_dict(), decoder=inner.to_dict())
    without_chance(pair)
    assert (pair.encoder.hidden_dropout_prob, pair.decoder.hidden_dropout_prob) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("config", "longest"), [(t.XLNetConfig(), None), (t.BertConfig(), 512), (t.T5Config(), None)]
)
def test_a_model_without_a_limit_has_none(config: Any, longest: int | None) -> None:
    """XLNet says -1, and a hint said: choose 8 to -1."""
    assert positions(config) == longest


def test_a_text_of_any_length_goes_into_xlnet(tmp_path: Path) -> None:
    size = tiny.save_tokenizer(tmp_path)
    config = t.XLNetConfig(
        vocab_size=size, d_model=16, n_layer=2, n_head=2, d_inner=32, pad_token_id=0
    )
    t.AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    assert load(tmp_path, train__max_length=600).max_length == 600


@pytest.mark.parametrize("wrong", ["nowhere", "no weights", "task"])
def test_a_model_is_checked_without_its_weights(wrong: str, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model")
    settings = from_flat(tiny.config(folder, folder, folder))
    check_model(settings)
    changes = tiny.TASKS["seq2seq"] if wrong == "task" else {}
    if wrong == "no weights":
        (folder / "model.safetensors").unlink()
    named = tmp_path / "other" if wrong == "nowhere" else folder
    code = "task.model" if wrong == "task" else "model.missing"
    with pytest.raises(ConfideError, match=code):
        check_model(from_flat(tiny.config(named, folder, folder, **changes)))
