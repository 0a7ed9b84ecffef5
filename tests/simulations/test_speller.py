"""The small T5 for spelling: its vocabulary, its score, and that it learns and repeats itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from confide.common.metrics import edits
from confide.common.models.loading import weights_sha256
from confide.simulations.assets import ASSETS
from confide.simulations.speller import RECIPE, train

LETTERS = {"a": "AH", "b": "B", "c": "K", "d": "D"}
SMALL: dict[str, Any] = {
    **RECIPE,
    "steps": 60,
    "batch": 32,
    "learning_rate": 1e-2,
    "tested_on": 20,
    "model": {**RECIPE["model"], "d_model": 32, "d_kv": 16, "d_ff": 32, "num_heads": 2},
}


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of two letters and more, spelt letter by letter."""
    folder = tmp_path_factory.mktemp("dictionary")
    words = [a + b + c for a in LETTERS for b in LETTERS for c in ("", *LETTERS)]
    words += [a + b for a in words for b in LETTERS]
    lines = [f"{w} {' '.join(LETTERS[x] for x in w)}\n" for w in dict.fromkeys(words)]
    (folder / "cmudict.dict").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(dictionary: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("speller")
    return folder, train(dictionary, folder, SMALL)


def test_it_learns_to_spell_words_that_it_has_not_seen(
    trained: tuple[Path, Any], dictionary: Path, tmp_path: Path
) -> None:
    untrained = train(dictionary, tmp_path, {**SMALL, "steps": 1})
    assert trained[1]["phoneme_error"] < 0.6 * untrained["phoneme_error"]


def test_the_same_recipe_gives_the_same_model(
    trained: tuple[Path, Any], dictionary: Path, tmp_path: Path
) -> None:
    short = {**SMALL, "steps": 3}
    state = torch.random.get_rng_state()
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        train(dictionary, folder, {**short, "seed": seed})
    one, two, other = map(weights_sha256, folders)
    assert one == two != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_folder_is_one_of_the_hubs_format(trained: tuple[Path, Any]) -> None:
    folder = str(trained[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size
    ids = tokenizer("cab")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["c", "a", "b", "</s>"]
    ids = tokenizer("K AH B")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["K", "AH", "B", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "K AH B"
    assert tokenizer("z?")["input_ids"][1] == tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("found", "wanted", "distance"),
    [
        ("K AH B", "K AH B", 0),
        ("", "K AH", 2),
        ("K AH B", "", 3),
        ("K B", "K AH B", 1),
        ("B AH K", "K AH B", 2),
        ("AH K AH B", "K AH B AH", 2),
    ],
)
def test_edits_are_insertions_deletions_and_substitutions(
    found: str, wanted: str, distance: int
) -> None:
    assert edits(found.split(), wanted.split()) == distance


def test_the_recipe_has_the_size_that_was_measured() -> None:
    from confide.simulations.speller import _new_model

    model = _new_model(68, RECIPE["model"])
    assert sum(p.numel() for p in model.parameters()) == 1_452_544


def test_the_vocabulary_of_the_real_dictionary_is_large_enough_for_a_run(real_cache: Path) -> None:
    from confide.simulations.sources.pronunciations import read_central

    if not ASSETS["cmudict"].folder.is_dir():
        pytest.skip("confide assets fetch cmudict was not run here")
    phonemes = {p for r in read_central(ASSETS["cmudict"].folder) for p in str(r.target).split()}
    assert len(phonemes) == 39
