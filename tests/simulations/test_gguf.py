"""A GGUF file, written here, becomes a plain folder with the same weights and tokenizer."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.common.errors import ConfideError
from confide.common.models.loading import weights_sha256
from confide.server.predict import export_merged, predict
from confide.server.run import run
from confide.simulations.inprocess import federation
from confide.simulations.made import unpack
from tests import tiny

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

LAYERS, WIDTH, HEADS, HIDDEN = 2, 64, 2, 96
# The last is what transformers' own GPT-2 tokenizers need, and would add beyond the embeddings.
SPECIAL = ["<none>", "<start>", "<end>", "<|endoftext|>"]
TOKENS = [*SPECIAL, *string.ascii_letters, *string.digits, "\u0120", "he", "\u0120a"]
MERGES = ["h e", "\u0120 a"]
TEMPLATE = "{% for message in messages %}<start>{{ message['content'] }}<end>{% endfor %}"


def write_gguf(path: Path, largest_norm: float = 1.0) -> dict[str, Any]:
    """A Llama of two layers with weights of four bits; returns the weights as they are read."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{name}": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{block}.ffn_down": (WIDTH, HIDDEN)}
        shapes |= {f"{block}.{name}_norm": (WIDTH,) for name in ("attn", "ffn")}
    generator, kind, weights = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_1, {}
    for name, shape in shapes.items():
        tensor = generator.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            tensor[0] = largest_norm
            writer.add_tensor(f"{name}.weight", tensor)
        else:
            packed = gguf.quants.quantize(tensor, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
            tensor = gguf.quants.dequantize(packed, kind)
        weights[name] = torch.from_numpy(tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


Unpacked = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    place = tmp_path_factory.mktemp("gguf")
    file, folder = place / "tiny.gguf", place / "folder"
    weights = write_gguf(file)
    unpack(file, folder)
    return file, folder, weights


def test_the_folder_holds_the_files_weights_as_float16(unpacked: Unpacked) -> None:
    _, folder, weights = unpacked
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    assert model.dtype == torch.float16
    state = model.state_dict()
    assert torch.equal(state["model.embed_tokens.weight"], weights["token_embd"].half())
    down = state["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(down, weights["blk.1.ffn_down"].half())


def test_the_model_is_no_longer_quantised_and_answers_alike(unpacked: Unpacked) -> None:
    file, folder, _ = unpacked
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    load = AutoModelForCausalLM.from_pretrained
    read = load(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    plain = load(str(folder), dtype=torch.float32)
    assert not getattr(plain, "is_quantized", False)
    ids = torch.tensor([[1, 5, 9, 20, 2]])
    assert torch.allclose(read(input_ids=ids).logits, plain(input_ids=ids).logits, atol=2e-3)


def test_tokenizer_and_chat_template_come_along(unpacked: Unpacked) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(unpacked[1]))
    ids = tokenizer("he ate")["input_ids"]
    assert [TOKENS[i] for i in ids] == ["he", "\u0120a", "t", "e"]
    assert tokenizer.eos_token == "<end>"
    chat = [{"role": "user", "content": "he"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<start>he<end>"


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, largest_norm=70_000.0)
    with pytest.raises(ConfideError, match=r"assets\.gguf.*do not fit into float16"):
        unpack(file, tmp_path / "folder")


def test_a_file_of_ones_own_is_unpacked_trained_on_and_exported(
    unpacked: Unpacked, tmp_path: Path
) -> None:
    file, same, _ = unpacked
    folder, data = tmp_path / "mine", tiny.save_task_federation(tmp_path / "data", "causal")
    command = ["assets", "unpack", str(file), str(folder)]
    done = CliRunner().invoke(build_app(), command, catch_exceptions=False)
    assert f"model.name={folder}" in done.stdout
    assert weights_sha256(folder) == weights_sha256(same) != ""
    settings = tiny.config(folder, data, tmp_path, round__count=1, **tiny.TASKS["causal"])
    members = federation(sorted(data.glob("holder-*.jsonl")), tmp_path / "ledgers")
    finished = run(settings, members).path
    (found,) = predict(finished, ["he"])
    assert isinstance(found.answer, str)
    export_merged(finished, tmp_path / "merged")
    AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    again = CliRunner().invoke(build_app(), command)
    assert isinstance(again.exception, ConfideError)
    assert "never overwritten" in again.exception.message


@pytest.mark.parametrize("content", [None, b"GGUF? no"])
def test_what_is_no_gguf_file_is_named_and_leaves_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    file, folder = tmp_path / "mine.gguf", tmp_path / "folder"
    if content:
        file.write_bytes(content)
    done = CliRunner().invoke(build_app(), ["assets", "unpack", str(file), str(folder)])
    assert isinstance(done.exception, ConfideError)
    assert (done.exception.code, "mine.gguf" in done.exception.message) == ("assets.gguf", True)
    assert not folder.exists()


def test_a_python_without_gguf_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfideError, match=r"extra\.missing.*pip install 'confide\[simulation\]'"):
        unpack(tmp_path / "tiny.gguf", tmp_path)
