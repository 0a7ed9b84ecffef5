"""A SentencePiece model as T5 has it loads through transformers, under the project's own pins.

sentencepiece 0.2.3 carries protobuf code of a later protobuf than Flower and Ray allow, and
transformers then takes the file for one of another kind. ``T5Tokenizer(vocab_file=...)`` is worse:
it ignores the file and has 104 words. The model here is trained on the spot.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

COLOURS = ("red", "blue", "green", "yellow", "violet", "grey", "white", "brown")
ANIMALS = ("fox", "dog", "heron", "mouse", "badger", "otter", "wolf", "owl")
LINES = [f"The {c} {a} jumps over the lazy {b}." for c in COLOURS for a in ANIMALS for b in ANIMALS]
TEXTS = (
    "The red fox jumps over the lazy owl.",
    "lazy  otters,   jumps",
    " white",
    "An unseen word: Zürich!",
    "translate English to German: The dog jumps.",
)
SPECIAL = 3  # <pad>, </s>, <unk>, in T5's order


@pytest.fixture(scope="module")
def model() -> bytes:
    """A SentencePiece model with T5's special pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *TEXTS]),
        model_writer=written,
        vocab_size=200,
        hard_vocab_limit=False,
        character_coverage=1.0,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture
def folder(model: bytes, tmp_path: Path) -> Path:
    """What a T5 of the Hub has of a tokenizer: ``spiece.model``, and nothing that was converted."""
    (tmp_path / "spiece.model").write_bytes(model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}), encoding="utf-8")
    return tmp_path


def test_a_t5_folder_with_a_sentencepiece_model_alone_loads(folder: Path, model: bytes) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert reference.get_piece_size() > len(COLOURS) + len(ANIMALS) + SPECIAL
    pieces = [reference.id_to_piece(i) for i in range(reference.get_piece_size())]
    assert tokenizer.convert_ids_to_tokens(range(len(pieces))) == pieces
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


@pytest.mark.parametrize("text", TEXTS)
def test_text_goes_in_as_sentencepiece_does_it_and_comes_back(
    text: str, folder: Path, model: bytes
) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    assert ids == [*reference.encode(text), reference.eos_id()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(text.split())


def test_words_and_not_letters_are_what_it_knows(folder: Path) -> None:
    pieces = AutoTokenizer.from_pretrained(folder).tokenize(TEXTS[0])
    assert "▁jumps" in pieces
    assert len(pieces) < len(TEXTS[0]) / 2


def test_what_was_loaded_is_saved_with_the_adapter_and_loads_again(
    folder: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    saved = tmp_path / "adapter"
    tokenizer.save_pretrained(str(saved))
    again = AutoTokenizer.from_pretrained(saved)
    assert [again(t)["input_ids"] for t in TEXTS] == [tokenizer(t)["input_ids"] for t in TEXTS]
