"""docs/models.md against the models themselves: what it says is exact is, the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.common.models import loading as models
from tests.client import matrix

PAGE = matrix.told(matrix.PAGE.read_text(encoding="utf-8"))
# One of each kind: alternating and windowed attention, experts, relative positions, a state space,
# two vocabularies, a head of several layers, padding that matters, layers that PEFT does not take.
QUICK = (
    ("bert", "masked"), ("modernbert", "mean"), ("modernbert", "model"), ("deberta-v2", "model"),
    ("qwen2", "causal"), ("gemma3_text", "causal"), ("mixtral", "causal"), ("mamba", "causal"),
    ("t5", "model"), ("bart", "model"), ("bart", "seq2seq"), ("albert", "mean"),
    ("big_bird", "mean"), ("convbert", "mean"), ("ibert", "mean"), ("xlnet", "mean"),
)  # fmt: skip
SLOW = [pytest.param(*pair, marks=pytest.mark.slow) for pair in PAGE if pair not in QUICK]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "task"), [*QUICK, *SLOW])
def test_the_page_says_of_a_model_what_is_so(kind: str, task: str, tmp_path: Path) -> None:
    """111 pairs of 75 types were tried by hand once; opacus#841, transformers#35896, #29429."""
    models._load.cache_clear()
    found = matrix.outcome(kind, task, tmp_path)
    assert found.word == PAGE[kind, task], found


def test_every_type_is_on_the_page_once_tried_or_untried() -> None:
    tried = {kind for kind, _ in PAGE}
    text = matrix.PAGE.read_text(encoding="utf-8")
    untried = text.partition("Untried: ")[2]
    assert len(tried) >= 75
    assert not any("WRONG" in word for word in PAGE.values())
    for kind in matrix.every_kind():
        assert (f"`{kind}`" in untried) != (kind in tried), kind


def test_the_page_says_how_many() -> None:
    exact = sum(word == "exact" for word in PAGE.values())
    text = " ".join(matrix.PAGE.read_text(encoding="utf-8").split())
    assert f"{len({kind for kind, _ in PAGE})} types of models" in text
    assert f"of {len(PAGE)} pairs of type and task, {exact} are exact" in text
