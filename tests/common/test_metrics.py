"""Metrics against figures worked out by hand, the libraries themselves, and the edges."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from confide.common.errors import ConfideError
from confide.common.metrics import METRICS, compute, exact_groups, normalized

CLASSES = ("accuracy", "f1", "macro-f1", "micro-f1", "mcc")
NUMBERS = ("pearson", "spearman")
TEXTS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact-match", "token-f1", "token-error")
NAMES = [*CLASSES, *NUMBERS, *TEXTS]

OFFLINE = """
import json, sys
import confide.common.metrics as m
early = [n for n in ("torch", "sklearn", "scipy", "sacrebleu", "nltk", "numpy") if n in sys.modules]
import socket
def refuse(*arguments, **keywords): raise AssertionError("a connection was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sample = {"classes": ([0, 1, 1], [0, 1, 0]), "numbers": ([1.0, 2.0, 2.5], [1.0, 2.0, 3.0]),
          "texts": (["the runners run fast"], ["a runner runs fast"])}
found = {name: m.compute(name, *sample[one.inputs]) for name, one in m.METRICS.items()}
print(json.dumps([early, "torch" in sys.modules, found]))
"""


def refused(code: str, name: str, predictions: object, references: object) -> str:
    with pytest.raises(ConfideError) as caught:
        compute(name, predictions, references)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert caught.value.hint
    return caught.value.message


def test_every_metric_has_its_name() -> None:
    assert list(METRICS) == NAMES
    assert {n for n, m in METRICS.items() if m.inputs == "classes"} == set(CLASSES)
    assert {n for n, m in METRICS.items() if m.inputs == "numbers"} == set(NUMBERS)


def test_nothing_heavy_is_imported_and_no_connection_is_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    early, torch, found = json.loads(done.stdout)
    assert early == []
    assert not torch
    assert set(found) == set(NAMES)
    assert found["rouge1"] == pytest.approx(0.75)  # the stemmer sees runner and runners, run twice


def test_classes_by_hand() -> None:
    """Found and right: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives."""
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    references = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    ones, zeros = Fraction(2 * 3, 2 * 3 + 1 + 2), Fraction(2 * 4, 2 * 4 + 2 + 1)
    assert compute("accuracy", predictions, references) == pytest.approx(0.7)
    assert compute("f1", predictions, references) == pytest.approx(float(ones))
    assert compute("macro-f1", predictions, references) == pytest.approx(float((ones + zeros) / 2))
    assert compute("micro-f1", predictions, references) == pytest.approx(0.7)
    expected = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert compute("mcc", predictions, references) == pytest.approx(expected)


def test_a_word_that_is_no_class_is_a_miss_and_not_a_class() -> None:
    """As a model that writes its answer may say: two misses of b, one class of neither."""
    predictions, references = ["a", "a", "b", "um", "er"], ["a", "a", "b", "b", "b"]
    assert compute("macro-f1", predictions, references) == pytest.approx((1 + 2 / 4) / 2)
    assert compute("micro-f1", predictions, references) == pytest.approx(2 * 3 / (2 * 3 + 2))
    assert compute("accuracy", predictions, references) == pytest.approx(3 / 5)
    assert compute("f1", [1, -1, 0], [1, 1, 0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_classes_against_sklearn(seed: int) -> None:
    from sklearn import metrics as sk

    draw = random.Random(seed)
    references = [draw.randrange(4) for _ in range(60)]
    predictions = [r if draw.random() < 0.6 else draw.randrange(4) for r in references]
    words = [f"class {p}" for p in predictions], [f"class {r}" for r in references]
    for average in ("macro", "micro"):
        expected = sk.f1_score(references, predictions, average=average)
        assert compute(f"{average}-f1", predictions, references) == pytest.approx(expected)
        assert compute(f"{average}-f1", *words) == pytest.approx(expected)
    expected = sk.matthews_corrcoef(references, predictions)
    assert compute("mcc", *words) == pytest.approx(expected)
    two = [p % 2 for p in predictions], [r % 2 for r in references]
    assert compute("f1", *two) == pytest.approx(sk.f1_score(two[1], two[0]))


def test_correlations_by_hand() -> None:
    predictions, references = [1.0, 2.0, 3.0, 10.0], [1.0, 3.0, 2.0, 4.0]
    # Around the means 4 and 2.5: products 4.5 - 1 + 0.5 + 9; squares 9 + 4 + 1 + 36 and 5.
    assert compute("pearson", predictions, references) == pytest.approx(13 / math.sqrt(50 * 5))
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15).
    assert compute("spearman", predictions, references) == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_against_numpy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    references = draw.normal(size=40)
    predictions = references + draw.normal(size=40)
    expected = np.corrcoef(predictions, references)[0, 1]
    assert compute("pearson", predictions, references) == pytest.approx(expected)
    ranks = [np.argsort(np.argsort(values)) for values in (predictions, references)]
    expected = np.corrcoef(*ranks)[0, 1]
    assert compute("spearman", predictions, references) == pytest.approx(expected)


def test_bleu_by_hand() -> None:
    """5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; equally long."""
    predictions, references = ["the cat sat on a mat"], ["the cat sat on the mat"]
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert compute("bleu", predictions, references) == pytest.approx(expected)
    short = compute("bleu", ["the cat sat on"], references)
    assert short == pytest.approx(100 * math.exp(1 - 6 / 4))


def test_bleu_and_chrf_are_of_the_corpus_with_as_many_references_as_there_are() -> None:
    import sacrebleu

    predictions = ["a small House by the sea", "they went home early today"]
    references = [["a little house by the sea", "a small house at the sea"], "they went home today"]
    streams = [[references[0][0], references[1]], [references[0][1], None]]
    assert compute("bleu", predictions, references) == pytest.approx(
        sacrebleu.corpus_bleu(predictions, streams).score
    )
    assert compute("chrf", predictions, references) == pytest.approx(
        sacrebleu.corpus_chrf(predictions, streams).score
    )
    single = [compute("bleu", [p], [r]) for p, r in zip(predictions, references, strict=True)]
    assert compute("bleu", predictions, references) != pytest.approx(sum(single) / 2)


def test_chrf_by_hand() -> None:
    """Characters 2 of 3 and pairs 1 of 2, no longer ones in common of 1: F is the same number."""
    expected = 100 * (2 / 3 + 1 / 2 + 0) / 3
    assert compute("chrf", ["abd"], ["abc"]) == pytest.approx(expected)


def test_rouge_by_hand() -> None:
    predictions, references = ["the cat was found under the bed"], ["the cat was under the bed"]
    assert compute("rouge1", predictions, references) == pytest.approx(2 * 6 / (7 + 6))
    assert compute("rouge2", predictions, references) == pytest.approx(2 * 4 / (6 + 5))
    assert compute("rougeL", predictions, references) == pytest.approx(2 * 6 / (7 + 6))
    assert compute("rougeL", ["bed the"], ["the bed"]) == pytest.approx(0.5)
    several = [["nothing of it", "the cat was under the bed"]]
    assert compute("rouge1", predictions, several) == pytest.approx(12 / 13)


def test_answers_are_normalised_as_in_squad() -> None:
    assert normalized("  The  U.S.A.'s an-swer, a\tTest ") == "usas answer test"
    assert normalized("theatre another") == "theatre another"
    assert compute("exact-match", ["The cat!"], ["a CAT"]) == 1.0
    assert compute("exact-match", ["cats", "dog"], [["cat", "Cats."], "cat"]) == 0.5


def test_words_of_answers_by_hand() -> None:
    assert compute("token-f1", ["the big big cat"], ["a big cat sat"]) == pytest.approx(2 * 2 / 6)
    assert compute("token-f1", ["cat", "dog"], [["dog", "cat here"], "cow"]) == pytest.approx(1 / 3)


def test_answers_of_which_nothing_is_left() -> None:
    assert compute("token-f1", ["the", "", "cat"], ["...", "cat", "the"]) == pytest.approx(1 / 3)
    assert compute("exact-match", [""], ["a"]) == 1.0
    worst = [1.0 if METRICS[name].less else 0.0 for name in TEXTS]
    assert [compute(name, [""], ["cat"]) for name in TEXTS] == worst


def test_token_error_is_of_the_whole_corpus_and_less_is_better() -> None:
    """One edit in one word and none in four: 1 of 5, not the mean of 1 and 0."""
    assert compute("token-error", ["K", "A B C D"], ["G", "A B C D"]) == pytest.approx(1 / 5)
    assert compute("token-error", ["A B C D"], ["A"]) == 3.0
    assert compute("token-error", ["A B"], [("C", "A B")]) == 0.0
    refused("metrics.undefined", "token-error", ["A"], [""])
    assert [name for name, metric in METRICS.items() if metric.less] == ["token-error"]


def test_perfect_predictions_get_the_best_figure() -> None:
    inputs = {"classes": [0, 1, 1], "numbers": [1.0, 2.0, 4.0], "texts": ["two good words here"]}
    for name, metric in METRICS.items():
        values = inputs[metric.inputs]
        assert compute(name, values, values) == pytest.approx(metric.best)


def test_constant_predictions_are_worth_nothing_and_not_nan() -> None:
    for name in NUMBERS:
        assert compute(name, [0.1 + 0.2] * 3, [1.0, 2.0, 3.0]) == 0.0
        assert compute(name, [0.3, 0.1 + 0.2, 0.3], [1.0, 2.0, 3.0]) == 0.0
        assert "references are the same" in refused("metrics.undefined", name, [1, 2], [3, 3])
        refused("metrics.undefined", name, [1.0], [1.0])
    refused("metrics.undefined", "pearson", [1.7e308, 1.7e308, 0.0], [1.0, 2.0, 5.0])


def test_one_class_only() -> None:
    assert compute("mcc", [1, 1], [1, 1]) == 0.0
    assert compute("mcc", [1, 1, 1], [1, 0, 1]) == 0.0
    assert compute("mcc", [1, 0, 1], [1, 1, 1]) == 0.0
    assert compute("f1", [0, 0], [0, 0]) == 0.0
    assert compute("f1", [0, 0], [1, 1]) == 0.0
    assert compute("macro-f1", [3, 3], [3, 3]) == 1.0
    assert compute("accuracy", ["a"], ["a"]) == 1.0


def test_nothing_to_score_is_refused() -> None:
    for name in NAMES:
        refused("metrics.empty", name, [], [])


def test_wrong_inputs_are_refused_without_a_word_of_them() -> None:
    private = "a private sentence"
    assert "2 predictions and 1 ref" in refused("metrics.length", "accuracy", [1, 0], [1])
    for name in NUMBERS:
        assert private not in refused("metrics.type", name, [private, 1.0], [1.0, 2.0])
        refused("metrics.type", name, [math.nan, 1.0], [1.0, 2.0])
        refused("metrics.type", name, [1.0, 2.0], [math.inf, 2.0])
        refused("metrics.type", name, [True, 2.0], [1.0, 2.0])
    for name in CLASSES:
        refused("metrics.type", name, [0.5, 1], [0, 1])
        refused("metrics.type", name, [None, 1], [0, 1])
    for name in TEXTS:
        assert "prediction 2 is of type int" in refused("metrics.type", name, ["", 1], ["", ""])
        refused("metrics.type", name, [["a"]], ["a"])
        refused("metrics.type", name, ["a"], [[]])
    assert private not in refused("metrics.type", "accuracy", [private, "b"], [1, 0])
    assert private not in refused("metrics.type", "f1", [private], [private])
    assert "0 and 1" in refused("metrics.type", "f1", [2, 1], [2, 1])


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfideError) as caught:
        compute("rouge-L", ["a"], ["a"])
    assert caught.value.code == "metrics.unknown"
    assert "'rougeL'" in caught.value.hint


def test_numbers_of_numpy_are_taken() -> None:
    assert compute("accuracy", np.array([0, 1]), np.array([0, 0])) == 0.5
    assert compute("accuracy", np.array([True, False]), [1, 0]) == 1.0
    assert compute("pearson", np.float32([1, 2, 3]), [2, 4, 6]) == pytest.approx(1.0)


def test_a_question_is_right_when_all_of_its_answers_are() -> None:
    predictions, references = [1, 0, 1, 1, 0], [1, 0, 0, 1, 0]
    assert exact_groups(predictions, references, ["p", "p", "q", "q", "r"]) == pytest.approx(2 / 3)
    with pytest.raises(ConfideError) as caught:
        exact_groups([1], [1], ["p", "q"])
    assert caught.value.code == "metrics.length"


def test_sets_of_labels_are_scored_as_scikit_learn_does() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    generator = np.random.default_rng(0)
    found, right = (generator.integers(0, 2, (40, 4)) for _ in range(2))
    sets = [tuple(map(int, row)) for row in found], [tuple(map(int, row)) for row in right]
    assert compute("accuracy", *sets) == accuracy_score(right, found)
    for average in ("micro", "macro"):
        expected = f1_score(right, found, average=average)
        assert compute(f"{average}-f1", *sets) == pytest.approx(expected, abs=1e-12)


def test_sets_at_the_edge() -> None:
    none, first = [(0, 0), (0, 0)], [(1, 0), (1, 0)]
    assert compute("micro-f1", none, none) == compute("macro-f1", none, none) == 0.0
    assert compute("micro-f1", none, first) == 0.0
    assert compute("macro-f1", first, first) == 1.0, "a label that nobody has is not asked for"
    assert compute("micro-f1", [(1, 1), (1, 1)], first) == pytest.approx(2 / 3)
    assert compute("micro-f1", [(1,), (0,)], [(1,), (1,)]) == pytest.approx(2 / 3), "one label"
    for name in ("f1", "mcc"):
        refused("metrics.type", name, first, first)
    refused("metrics.type", "micro-f1", [(1, 0), (1,)], first)
    refused("metrics.type", "accuracy", [(1, 2)], [(1, 0)])
    refused("metrics.type", "accuracy", [1], [(1,)])
