"""What a model's folder says about the text that it writes: its language, and where it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from confide.common.errors import ConfideError
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import from_flat
from confide.common.tasks.example import IGNORED
from confide.common.tasks.generation import continued
from confide.common.text.readers import Record
from tests import tiny

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = [f"▁{word}" for word in (*tiny.WORDS, *(f"word{i}" for i in range(60)))]
MBART50 = ("en_XX", "de_DE", t.MBart50Tokenizer)
MBART25 = ("en_XX", "de_DE", t.MBartTokenizer)
NLLB = ("eng_Latn", "deu_Latn", t.NllbTokenizer)


def save_translator(folder: Path, kind: Any, **generation: Any) -> Path:
    """A random translator of 2 layers; its tokenizer does not say into which language."""
    source, target, tokenizer_class = kind
    pieces = [(piece, -float(i)) for i, piece in enumerate([*SPECIAL, *WORDS])]
    if tokenizer_class is t.NllbTokenizer:
        vocabulary: Any = {piece: i for i, (piece, _) in enumerate(pieces)}
        tokenizer = tokenizer_class(vocab=vocabulary, merges=[], src_lang=source)
    else:
        tokenizer = tokenizer_class(vocab=pieces, src_lang=source)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    sizes = {f"{stack}_{what}": n for stack in ("encoder", "decoder")
             for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    begin = tokenizer.convert_tokens_to_ids(target) if tokenizer_class is t.MBartTokenizer else 2
    start = {"decoder_start_token_id": begin, "max_position_embeddings": 64}
    if tokenizer_class is t.NllbTokenizer:
        config: Any = t.M2M100Config(
            vocab_size=len(tokenizer), d_model=16, **sizes, **special, **start
        )
        model: Any = t.M2M100ForConditionalGeneration(config)
    else:
        config = t.MBartConfig(vocab_size=len(tokenizer), d_model=16, **sizes, **special, **start)
        model = t.MBartForConditionalGeneration(config)
    if generation.pop("says", True):
        model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids(target)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(str(folder))
    return folder


def load(folder: Path, task: str = "seq2seq", **changes: Any) -> LoadedModel:
    flat = tiny.config(folder, folder, folder, **(dict(tiny.TASKS[task]) | changes))
    return load_model(from_flat(flat))


@pytest.mark.parametrize("kind", [MBART50, NLLB], ids=["mbart50", "nllb"])
def test_targets_are_framed_as_targets_and_texts_begin_with_their_language(
    kind: Any, tmp_path: Path
) -> None:
    """transformers#19943: cut as sources, targets taught the wrong language's code."""
    loaded = load(save_translator(tmp_path, kind), task__template="{text}")
    source, target = (loaded.tokenizer.convert_tokens_to_ids(code) for code in kind[:2])
    assert source != target
    records = [Record("the day", "warm kind"), Record("a street in its town", "grim")]
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    for example in examples:
        assert isinstance(example.target, tuple)
        assert source in example.ids
        assert target not in example.ids
        assert (example.target[0], example.target[-1]) == (target, 2)
        assert source not in example.target
    batch = EncodedText(examples, loaded).together([0, 1])
    seen = batch.inputs["decoder_input_ids"]
    assert seen[0, :2].tolist() == [2, target], "the decoder reads the language behind its start"
    made = continued([e.ids for e in examples], loaded, new=6, beams=1)
    assert [row[0] for row in made] == [target] * 2, "and writes it first"


@pytest.mark.parametrize("kind", [MBART50, NLLB], ids=["mbart50", "nllb"])
def test_the_target_is_what_the_model_is_asked_for_at_each_place(kind: Any, tmp_path: Path) -> None:
    loaded = load(save_translator(tmp_path, kind), task__template="{text}")
    examples = loaded.task.encode([Record("a day", "warm")], loaded.tokenizer, 32)
    batch = EncodedText(examples, loaded).together([0])
    model = loaded.model.get_base_model()
    with torch.no_grad():
        own = model(
            input_ids=batch.inputs["input_ids"],
            attention_mask=batch.attention_mask,
            labels=batch.targets,
        ).loss
        ours = loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets)
    assert (batch.targets != IGNORED).all()
    assert torch.allclose(own, ours[0], atol=1e-5), "transformers' own loss of one example"


@pytest.mark.parametrize("kind", [MBART50, NLLB], ids=["mbart50", "nllb"])
def test_a_translator_that_does_not_say_into_which_language_is_refused(
    kind: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfideError, match=r"model\.tokenizer") as caught:
        load(save_translator(tmp_path, kind, says=False))
    assert "tgt_lang" in caught.value.hint


def test_a_decoder_may_begin_with_its_language(tmp_path: Path) -> None:
    """mBART of 25 languages: the code ends a target, and is where reading begins."""
    loaded = load(save_translator(tmp_path, MBART25, says=False), task__template="{text}")
    target = loaded.tokenizer.convert_tokens_to_ids("de_DE")
    examples = loaded.task.encode([Record("a day", "warm kind")], loaded.tokenizer, 32)
    assert isinstance(examples[0].target, tuple)
    assert examples[0].target[-2:] == (2, target)
    batch = EncodedText(examples, loaded).together([0])
    assert batch.inputs["decoder_input_ids"][0, 0].item() == target
    assert continued([examples[0].ids], loaded, new=4, beams=1)[0][:1] != [target]


def test_a_tokenizer_that_says_it_needs_no_generation_config(tmp_path: Path) -> None:
    save_translator(tmp_path, MBART50, says=False)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tgt_lang": "de_DE"}))
    loaded = load(tmp_path)
    target = loaded.tokenizer.convert_tokens_to_ids("de_DE")
    assert continued([(5, 6)], loaded, new=4, beams=2)[0][0] == target


def test_generation_ends_at_every_end_that_the_folder_names(tmp_path: Path) -> None:
    """lighteval#1278: a chat model ends a turn by another token than a text."""
    folder = tiny.save_task_model(tmp_path, "prompt")
    first = continued([(5, 6, 7)], load(folder, "prompt"), new=8, beams=1)[0]
    stop = first[2]
    config = json.loads((folder / "generation_config.json").read_text())
    config["eos_token_id"] = [3, stop]
    (folder / "generation_config.json").write_text(json.dumps(config))
    # Another length, since a model is kept warm for equal settings.
    again = continued([(5, 6, 7)], load(folder, "prompt", train__max_length=31), new=8, beams=1)[0]
    assert again == first[: first.index(stop)]


def test_what_the_folder_forbids_is_not_written(tmp_path: Path) -> None:
    folder = tiny.save_task_model(tmp_path, "prompt")
    first = continued([(5, 6, 7)], load(folder, "prompt"), new=8, beams=1)[0]
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"suppress_tokens": [first[0]], "do_sample": True, "temperature": 0.3}
    config |= {"max_length": 2, "min_length": 3, "num_beams": 4, "early_stopping": True}
    (folder / "generation_config.json").write_text(json.dumps(config))
    loaded = load(folder, "prompt", train__max_length=31)
    again = [continued([(5, 6, 7)], loaded, new=8, beams=1)[0] for _ in range(2)]
    assert first[0] not in again[0]
    assert again[0] == again[1], "never sampled"
    assert 0 < len(again[0]) <= 8
