"""Metrics by name, the usual ones of each task, computed offline from predictions and references.

Nothing is private or noisy here: the coordinator calls it on its own public text, and no message
contains a prediction or a reference. The libraries are imported when a metric is first used, and
none of them ever uses the network. Perplexity is not here: it follows from the loss.

| metric | of | range | at the edge |
|---|---|---|---|
| accuracy | classes, sets | 0, 1 | a set is right if all of it is (subset accuracy) |
| f1 | classes 0 and 1 | 0, 1 | 0 where no 1 was found, or none was there to be found |
| macro-f1, micro-f1 | classes | 0, 1 | over the references' classes; what none has is a miss |
| | sets | 0, 1 | macro over the labels that references have, micro over all |
| mcc | classes | -1, 1 | 0 where predictions or references are all of one class |
| pearson, spearman | numbers | -1, 1 | 0 for constant predictions; constant references: refused |
| bleu, chrf | texts | 0, 100 | of the whole corpus, by sacrebleu's defaults (13a; chrF2) |
| rouge1, rouge2, rougeL | texts | 0, 1 | mean F, stemmed; it reads a-z and 0-9 only, else chrf |
| exact-match, token-f1 | texts | 0, 1 | SQuAD's normal form; two that it leaves empty are equal |
| token-error | texts | 0, ... | edits of all records by words of their references; less is better |

A set is a tuple with a 0 or 1 for each label. Nothing to score is refused everywhere; a figure is
finite or it is a ConfideError. More is better, but for token-error (word error in speech, phoneme
error where each word is a phoneme), which may exceed 1.

Sources: Rajpurkar et al. 2016 (SQuAD), Papineni et al. 2002 (BLEU), Post 2018 (sacrebleu), Popovic
2015 (chrF), Lin 2004 (ROUGE), Wang et al. 2018 and 2019 (GLUE, SuperGLUE), Matthews 1975,
Levenshtein 1966.
"""

from __future__ import annotations

import math
import re
import string
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral, Real
from typing import Any, NoReturn

from .errors import ConfideError, nearest
from .machine.installed import library

# Below this share of its mean, the spread of numbers is rounding (scipy warns from there on).
_ROUNDING = 1e-13
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# What ROUGE-1.5.5 reads as words, and the length from which on it takes their stems.
_NOT_ROUGE = re.compile(r"[^a-z0-9]+")
_LEAST_STEMMED = 3
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        inputs: ``classes`` (whole numbers, words, or sets; all the same), ``numbers``, or
            ``texts`` (a reference may be a sequence of texts that are equally right).
        best: the figure of perfect predictions.
        of: the figure, for inputs that were checked.
        less: whether less is better.
    """

    inputs: str
    best: float
    of: Callable[[Sequence[Any], Sequence[Any]], float]
    less: bool = False


def compute(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """The metric called ``name`` of predictions (N,) against references (N,).

    Raises:
        ConfideError: ``metrics.unknown``, ``metrics.empty``, ``metrics.length``,
            ``metrics.type`` for a value that the metric is not made for, or
            ``metrics.undefined`` where no figure exists. No message contains a value.
    """
    if name not in METRICS:
        raise ConfideError(
            "metrics.unknown", f"No metric is called {name!r:.100}.", nearest(name[:100], METRICS)
        )
    metric = METRICS[name]
    _check_lengths(predictions, references)
    check = _CHECKS[metric.inputs]
    predicted = [check(name, "prediction", i, v) for i, v in enumerate(predictions, start=1)]
    allowed = check if metric.inputs != "texts" else _texts
    right = [allowed(name, "reference", i, v) for i, v in enumerate(references, start=1)]
    figure = float(metric.of(predicted, right))
    if not math.isfinite(figure):
        _undefined(f"{name} of these {len(right)} records is not a number")
    return figure


def exact_groups(
    predictions: Sequence[Any], references: Sequence[Any], groups: Sequence[Hashable]
) -> float:
    """The share of groups of which every prediction is right: MultiRC's exact match, whose
    groups are the questions. Predictions, references and groups are (N,).

    Raises:
        ConfideError: as ``compute``.
    """
    _check_lengths(predictions, references)
    _check_lengths(predictions, groups)
    right: dict[Hashable, bool] = defaultdict(lambda: True)
    predicted, expected, _ = _numbered(predictions, references)
    for p, r, group in zip(predicted, expected, groups, strict=True):
        right[group] = right[group] and p == r
    return sum(right.values()) / len(right)


def _check_lengths(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if len(predictions) != len(references):
        raise ConfideError(
            "metrics.length",
            f"There are {len(predictions)} predictions and {len(references)} references.",
            "Give one reference, or one sequence of references, for each prediction.",
        )
    if not len(references):
        raise ConfideError(
            "metrics.empty", "There is nothing to score.", "Give at least one record."
        )


def _label(name: str, what: str, number: int, value: Any) -> int | str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple) and value and all(one in (0, 1) for one in value):
        return tuple(map(int, value))
    if isinstance(value, Integral) or type(value).__name__ == "bool":  # numpy's is no Integral
        return int(value)
    raise _wrong_type(
        name, what, number, value, "a class: a whole number, a word, or a tuple of 0 and 1"
    )


def _number(name: str, what: str, number: int, value: Any) -> float:
    if type(value) is not bool and isinstance(value, Real) and math.isfinite(value):
        return float(value)
    raise _wrong_type(name, what, number, value, "a finite number")


def _text(name: str, what: str, number: int, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _wrong_type(name, what, number, value, "text")


def _texts(name: str, what: str, number: int, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and value and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise _wrong_type(name, what, number, value, "text, or several texts")


def _wrong_type(name: str, what: str, number: int, value: Any, wanted: str) -> ConfideError:
    return ConfideError(
        "metrics.type",
        f"{name}: {what} {number} is of type {type(value).__name__}, but must be {wanted}.",
        "Choose a metric that fits the task.",
    )


def _undefined(why: str) -> NoReturn:
    raise ConfideError(
        "metrics.undefined", f"{why}.", "Score on more records, or choose another metric."
    )


_CHECKS: Mapping[str, Callable[[str, str, int, Any], Any]] = {
    "classes": _label,
    "numbers": _number,
    "texts": _text,
}


def _numbered(
    predictions: Sequence[Any], references: Sequence[Any]
) -> tuple[list[int], list[int], list[int]]:
    """Predictions and references as numbers, and the numbers of the references' classes."""
    kinds = {type(value) for value in (*predictions, *references)}
    if len(kinds) > 1:
        raise ConfideError(
            "metrics.type",
            "Some classes are whole numbers and some are words.",
            "Give predictions and references in the same form; 1 and '1' are different classes.",
        )
    index = {value: i for i, value in enumerate(dict.fromkeys((*references, *predictions)))}
    classes = list(range(len(set(references))))
    return [index[p] for p in predictions], [index[r] for r in references], classes


def _accuracy(predictions: Sequence[int | str], references: Sequence[int | str]) -> float:
    predicted, right, _ = _numbered(predictions, references)
    return sum(p == r for p, r in zip(predicted, right, strict=True)) / len(right)


def _binary_f1(predictions: Sequence[int | str], references: Sequence[int | str]) -> float:
    f1_score = library("sklearn.metrics").f1_score
    if not set(references) <= {0, 1}:
        raise ConfideError(
            "metrics.type",
            "f1 is for two classes, 0 and 1; these references have others.",
            "Give class indices, or use macro-f1.",
        )
    found, there = [p == 1 for p in predictions], [r == 1 for r in references]
    return float(f1_score(there, found, zero_division=0.0))


def _averaged_f1(average: str) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    def f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        f1_score = library("sklearn.metrics").f1_score
        predicted, right, classes = _numbered(predictions, references)
        if isinstance(references[0], tuple):
            return _f1_of_sets(average, predictions, references)
        return float(f1_score(right, predicted, labels=classes, average=average, zero_division=0.0))

    return f1


def _f1_of_sets(
    average: str, predictions: Sequence[tuple[int, ...]], references: Sequence[tuple[int, ...]]
) -> float:
    """Micro: over all labels of all records at once. Macro: the mean over the labels."""
    f1_score = library("sklearn.metrics").f1_score
    if len({len(one) for one in (*predictions, *references)}) > 1:
        raise ConfideError(
            "metrics.type",
            "Some sets are of more labels than others.",
            "Give a 0 or 1 for each label in every prediction and reference.",
        )
    columns = [(list(chain(*references)), list(chain(*predictions)))]
    if average == "macro":
        columns = [
            ([one[label] for one in references], [one[label] for one in predictions])
            for label in range(len(references[0]))
        ]
    figures = [f1_score(right, found, zero_division=0.0) for right, found in columns if any(right)]
    return math.fsum(figures) / len(figures) if figures else 0.0


def _mcc(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    matthews_corrcoef = library("sklearn.metrics").matthews_corrcoef
    if isinstance(references[0], tuple):
        raise ConfideError(
            "metrics.type", "mcc is for classes, not for sets of labels.", "Use micro-f1."
        )
    predicted, right, _ = _numbered(predictions, references)
    if len(set(predicted)) == 1 or len(set(right)) == 1:
        return 0.0
    return float(matthews_corrcoef(right, predicted))


def _correlation(function: str) -> Callable[[Sequence[float], Sequence[float]], float]:
    def correlation(predictions: Sequence[float], references: Sequence[float]) -> float:
        import scipy.stats

        if _constant(references):
            _undefined(f"all {len(references)} references are the same number")
        if _constant(predictions):
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # overflow: found by its result
            found = getattr(scipy.stats, function)(predictions, references).statistic
        return min(1.0, max(-1.0, float(found))) if math.isfinite(found) else float(found)

    return correlation


def _constant(values: Sequence[float]) -> bool:
    low, high = min(values), max(values)
    return high - low <= _ROUNDING * max(abs(low), abs(high))


def _sacre(function: str) -> Callable[[Sequence[str], Sequence[tuple[str, ...]]], float]:
    def score(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
        sacrebleu = library("sacrebleu")
        most = max(len(texts) for texts in references)
        # One stream for each place among the references, with gaps where a record has fewer.
        streams = [
            [texts[i] if i < len(texts) else None for texts in references] for i in range(most)
        ]
        # sacrebleu logs a warning over text that looks tokenized, unless it is told to go on.
        options = {"force": True} if function == "corpus_bleu" else {}
        return float(getattr(sacrebleu, function)(list(predictions), streams, **options).score)

    return score


def _rouge(name: str) -> Callable[[Sequence[str], Sequence[tuple[str, ...]]], float]:
    def score(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
        stem = library("nltk.stem.porter").PorterStemmer().stem  # code, no data

        def words(text: str) -> list[str]:
            found = _NOT_ROUGE.sub(" ", text.lower()).split()
            return [stem(word) if len(word) > _LEAST_STEMMED else word for word in found]

        def one(prediction: str, reference: str) -> float:
            return _overlap(name, words(prediction), words(reference))

        return _best_of(one)(predictions, references)

    return score


def _overlap(name: str, found: list[str], right: list[str]) -> float:
    """F of the words in their common subsequence, or of the n-grams that both have."""
    if name == "rougeL":
        sizes, shared = (len(found), len(right)), _common_subsequence(found, right)
    else:
        n = int(name.removeprefix("rouge"))
        ours, theirs = (
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            for words in (found, right)
        )
        sizes, shared = (ours.total(), theirs.total()), (ours & theirs).total()
    return 2 * shared / sum(sizes) if shared else 0.0


def _common_subsequence(found: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for one in found:
        diagonal = 0
        for j, other in enumerate(right, start=1):
            longer = diagonal + 1 if one == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], longer
    return row[-1]


def normalized(text: str) -> str:
    """SQuAD's normal form of an answer: lower case, no punctuation, no article, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _best_of(
    score: Callable[[str, str], float],
) -> Callable[[Sequence[str], Sequence[tuple[str, ...]]], float]:
    """The mean over records of the best score over a record's references."""

    def mean(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
        pairs = zip(predictions, references, strict=True)
        best = (max(score(p, reference) for reference in r) for p, r in pairs)
        return math.fsum(best) / len(references)

    return mean


def _same(prediction: str, reference: str) -> float:
    return float(normalized(prediction) == normalized(reference))


def _shared_words(prediction: str, reference: str) -> float:
    found, right = normalized(prediction).split(), normalized(reference).split()
    if not found or not right:
        return float(found == right)
    shared = (Counter(found) & Counter(right)).total()
    return 2 * shared / (len(found) + len(right))


def edits(found: Sequence[str], wanted: Sequence[str]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions from one to the other."""
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(found, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(wanted, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


def _token_error(predictions: Sequence[str], references: Sequence[tuple[str, ...]]) -> float:
    """Each record counts with its nearest reference, by edits per word."""
    wrong, words = 0, 0
    for prediction, right in zip(predictions, references, strict=True):
        found = prediction.split()
        counted = [(edits(found, wanted), len(wanted)) for wanted in map(str.split, right)]
        nearest_one = min(counted, key=lambda pair: (pair[0] / max(pair[1], 1), pair))
        wrong, words = wrong + nearest_one[0], words + nearest_one[1]
    if not words:
        _undefined("no reference has a word")
    return wrong / words


def _metric(
    inputs: str, best: float, of: Callable[[Any, Any], float], *, less: bool = False
) -> Metric:
    return Metric(inputs=inputs, best=best, of=of, less=less)


METRICS: Mapping[str, Metric] = {
    "accuracy": _metric("classes", 1.0, _accuracy),
    "f1": _metric("classes", 1.0, _binary_f1),
    "macro-f1": _metric("classes", 1.0, _averaged_f1("macro")),
    "micro-f1": _metric("classes", 1.0, _averaged_f1("micro")),
    "mcc": _metric("classes", 1.0, _mcc),
    "pearson": _metric("numbers", 1.0, _correlation("pearsonr")),
    "spearman": _metric("numbers", 1.0, _correlation("spearmanr")),
    "bleu": _metric("texts", 100.0, _sacre("corpus_bleu")),
    "chrf": _metric("texts", 100.0, _sacre("corpus_chrf")),
    "rouge1": _metric("texts", 1.0, _rouge("rouge1")),
    "rouge2": _metric("texts", 1.0, _rouge("rouge2")),
    "rougeL": _metric("texts", 1.0, _rouge("rougeL")),
    "exact-match": _metric("texts", 1.0, _best_of(_same)),
    "token-f1": _metric("texts", 1.0, _best_of(_shared_words)),
    "token-error": _metric("texts", 0.0, _token_error, less=True),
}
