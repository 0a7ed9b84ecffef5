"""GLUE and SuperGLUE by name: which columns make a text, the labels' names, the metrics.

``glue/sst2`` or ``superglue/boolq``, or the second part alone if only one suite has it.
The rows come from the Hub, or from a folder in the Hub's format: ``FOLDER/sst2/train-00000-of-
00001.parquet``, or ``.jsonl``. One row becomes one record, whose text is its sentence, or its
named fields (``question: ... passage: ...``); ``template`` puts the name of the task in front, as
T5 was taught, and the label names are then the words to write. This is public text: nothing here
ever sees a holder's.

Sources: Wang et al. 2018 (GLUE) and 2019 (SuperGLUE); Raffel et al. 2020, appendix D (the field
names of the prompts); label names and splits as in nyu-mll/glue and aps/super_glue on the Hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfideError, nearest
from ..machine.installed import library
from ..metrics import compute, exact_groups
from ..tasks import TASKS
from .readers import Record

Row = Mapping[str, Any]
# The name of MultiRC's exact match, which needs to know which answers are of one question.
EXACT_GROUPS = "exact-groups"
_NO_NUMBER = -1.0
_SPLITS = ("train", "validation", "test")
_HUB = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One of the seventeen.

    Attributes:
        suite, config: ``glue`` or ``superglue``, and the Hub's name of the task in it.
        fields: the columns that make the text, in order.
        labels: their names in the Hub's order; none where the answer is a number or any text.
        metrics: the official ones, the main one first.
        kind: ``classification``, ``regression`` or ``seq2seq``. Each can be done as text to text.
        splits: their names on the Hub; the labels of a test split are not public.
        extra: further columns that the text needs.
        scale: the least and the greatest number, where the answer is one.
    """

    suite: str
    config: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    kind: str = "classification"
    splits: tuple[str, ...] = _SPLITS
    extra: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return f"{self.suite}/{self.config}"

    @property
    def hub(self) -> str:
        """The data set's id on the Hub."""
        return _HUB[self.suite]

    @property
    def target(self) -> str:
        """The column of the answer."""
        return "answers" if self.free else "label"

    @property
    def free(self) -> bool:
        """Whether the answer is any text."""
        return not self.labels and self.scale is None

    @property
    def template(self) -> str:
        """What T5 reads, with the record's text for ``{text}``."""
        alone = f"{self.fields[0]}: " if len(self.fields) == 1 else ""
        return f"{self.config} {alone}{{text}}"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row: its record, every answer that is right, and the question that it belongs to."""

    record: Record
    answers: tuple[str, ...]
    question: str


_NO_YES = ("False", "True")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
_CLAIM = ("hypothesis", "premise")
_F1 = ("f1", "accuracy")
_MNLI = tuple(f"{part}_{kind}" for part in _SPLITS[1:] for kind in ("matched", "mismatched"))


def _glue(config: str, fields: Sequence[str], labels: Sequence[str], **more: Any) -> Benchmark:
    return Benchmark(
        suite="glue", config=config, fields=tuple(fields), labels=tuple(labels), **more
    )


def _super(config: str, fields: Sequence[str], labels: Sequence[str], **more: Any) -> Benchmark:
    return Benchmark(
        suite="superglue", config=config, fields=tuple(fields), labels=tuple(labels), **more
    )


_ALL = (
    _glue("cola", ["sentence"], ["unacceptable", "acceptable"], metrics=("mcc",)),
    _glue("sst2", ["sentence"], ["negative", "positive"]),
    _glue("mrpc", _PAIR, ["not_equivalent", "equivalent"], metrics=_F1),
    _glue("stsb", _PAIR, [], metrics=("pearson", "spearman"), kind="regression", scale=(0.0, 5.0)),
    _glue("qqp", ["question1", "question2"], ["not_duplicate", "duplicate"], metrics=_F1),
    _glue("mnli", _CLAIM, ["entailment", "neutral", "contradiction"], splits=("train", *_MNLI)),
    _glue("qnli", ["question", "sentence"], _ENTAILMENT),
    _glue("rte", _PAIR, _ENTAILMENT),
    _glue("wnli", _PAIR, ["not_entailment", "entailment"]),
    _super("boolq", ["passage", "question"], _NO_YES),
    _super(
        "cb",
        _CLAIM,
        ["entailment", "contradiction", "neutral"],
        metrics=("macro-f1", "accuracy"),
    ),
    _super("copa", ["choice1", "choice2", "premise", "question"], ["choice1", "choice2"]),
    _super(
        "multirc",
        ["question", "answer", "paragraph"],
        _NO_YES,
        metrics=("f1", EXACT_GROUPS),
        extra=("idx",),
    ),
    _super(
        "record",
        ["query", "entities", "passage"],
        [],
        metrics=("token-f1", "exact-match"),
        kind="seq2seq",
        extra=("idx",),
    ),
    _super("rte", _CLAIM, _ENTAILMENT),
    _super("wic", [*_PAIR, "word"], _NO_YES),
    _super(
        "wsc",
        ["text"],
        _NO_YES,
        extra=("span1_index", "span1_text", "span2_index", "span2_text"),
    ),
)
BENCHMARKS: Mapping[str, Benchmark] = {one.name: one for one in _ALL}


def spec(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ConfideError: ``benchmark.unknown``, with the nearest name, or both where two have it.
    """
    found = [one for one in _ALL if name in (one.name, one.config)]
    if len(found) == 1:
        return found[0]
    if found:
        both = " or ".join(one.name for one in found)
        raise ConfideError("benchmark.unknown", f"{name!r} is in both suites.", f"Write {both}.")
    known = {*BENCHMARKS, *(one.config for one in _ALL)}
    raise ConfideError(
        "benchmark.unknown", f"No benchmark is called {name!r:.100}.", nearest(name[:100], known)
    )


def load_benchmark(name: str, split: str, folder: str | Path | None = None) -> list[Record]:
    """The records of a split. The target is the name of the label, the score, or the first of the
    right answers; None in a test split. The person is the number of the row, or in MultiRC and
    ReCoRD that of the paragraph or passage, which several rows share.

    Args:
        name: as for ``spec``.
        split: one of the benchmark's ``splits``.
        folder: of the whole suite in the Hub's format; None asks the Hub.

    Raises:
        ConfideError: ``benchmark.unknown``, ``benchmark.split``, ``benchmark.missing``,
            ``benchmark.columns``, ``benchmark.labels`` or ``benchmark.value``.
    """
    return [item.record for item in load_items(name, split, folder)]


def load_items(name: str, split: str, folder: str | Path | None = None) -> list[Item]:
    """The rows of a split with everything that the official metrics need; see
    ``load_benchmark``."""
    chosen = spec(name)
    if split not in chosen.splits:
        raise ConfideError(
            "benchmark.split",
            f"{chosen.name} has no split {split!r:.100}.",
            nearest(split[:100], chosen.splits),
        )
    rows = _from_folder(chosen, split, Path(folder)) if folder else _from_hub(chosen, split)
    _check_columns(chosen, rows)
    return [_item(chosen, number, row) for number, row in enumerate(rows, start=1)]


def score(name: str, items: Sequence[Item], predictions: Sequence[str | float]) -> dict[str, float]:
    """The official metrics of predictions, which are label names, numbers or answers by kind.

    A word that names no label, which a model that writes may produce, is a wrong prediction.
    Written answers of a regression are read as numbers; any other answer counts as -1, below every
    scale, as T5's authors do (``string_to_float`` of their text-to-text-transfer-transformer).

    Raises:
        ConfideError: as ``metrics.compute``; ``benchmark.value`` where an answer is not known.
    """
    chosen = spec(name)
    for number, item in enumerate(items, start=1):
        if not item.answers:
            raise _wrong(chosen, number, chosen.target, "known: a test split has no answers")
    references: list[Any] = [item.answers for item in items]
    predicted: list[Any] = list(predictions)
    if chosen.scale:
        references = [float(item.answers[0]) for item in items]
        predicted = [_read_number(p) if isinstance(p, str) else p for p in predictions]
    elif chosen.labels:
        index = {label: i for i, label in enumerate(chosen.labels)}
        references = [index[item.answers[0]] for item in items]
        predicted = [index.get(str(p), -1) for p in predictions]
    questions = [item.question for item in items]
    return {
        metric: exact_groups(predicted, references, questions)
        if metric == EXACT_GROUPS
        else compute(metric, predicted, references)
        for metric in chosen.metrics
    }


def _read_number(answer: str) -> float:
    try:
        number = float(answer)
    except ValueError:
        return _NO_NUMBER
    return number if math.isfinite(number) else _NO_NUMBER


def _from_hub(chosen: Benchmark, split: str) -> Any:
    datasets = library("datasets")
    try:
        return datasets.load_dataset(chosen.hub, chosen.config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfideError(
            "benchmark.missing",
            f"{chosen.config}/{split} of {chosen.hub} cannot be had from the Hub"
            f" ({type(error).__name__}).",
            f"Give a folder that holds {chosen.config}/{split}-*.parquet or .jsonl.",
        ) from None


def _from_folder(chosen: Benchmark, split: str, folder: Path) -> Any:
    datasets = library("datasets")
    for suffix, builder in (("parquet", "parquet"), ("jsonl", "json")):
        here = folder / chosen.config
        files = sorted([*here.glob(f"{split}.{suffix}"), *here.glob(f"{split}-*.{suffix}")])
        if not files:
            continue
        try:
            return datasets.load_dataset(
                builder, data_files={split: [str(file) for file in files]}, split=split
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfideError(
                "benchmark.missing",
                f"{files[0]} cannot be read ({type(error).__name__}).",
                f"It should be the Hub's {chosen.config}/{split} as {suffix}.",
            ) from None
    raise ConfideError(
        "benchmark.missing",
        f"{folder} has no {chosen.config}/{split}-*.parquet and no {chosen.config}/{split}.jsonl.",
        f"Name the folder that holds {chosen.config}/, or none to ask the Hub.",
    )


def _check_columns(chosen: Benchmark, rows: Any) -> None:
    lacking = {*chosen.fields, *chosen.extra, chosen.target} - set(rows.column_names)
    if lacking:
        raise ConfideError(
            "benchmark.columns",
            f"{chosen.name}: the column {min(lacking)!r} is missing; there are"
            f" {', '.join(rows.column_names)}.",
            "Use the columns of the Hub's data set.",
        )
    names = getattr(rows.features[chosen.target], "names", None)
    # Another order would turn every label into another one, and nothing else would show it.
    if names is not None and tuple(names) != chosen.labels:
        raise ConfideError(
            "benchmark.labels",
            f"{chosen.name}: the labels are {', '.join(names)}, not {', '.join(chosen.labels)}.",
            "Use the Hub's data set as it is.",
        )


def _item(chosen: Benchmark, number: int, row: Row) -> Item:
    try:
        prepared = _PREPARED.get(chosen.name, dict)(row)
        parts = [(name, prepared[name]) for name in chosen.fields]
        person, question = _places(row, number)
    except (KeyError, TypeError, IndexError, AttributeError):
        columns = " or ".join((*chosen.fields, *chosen.extra))
        raise _wrong(chosen, number, columns, "as on the Hub") from None
    for name, value in parts:
        if not isinstance(value, str):
            raise _wrong(chosen, number, name, "text")
    text = " ".join(f"{name}: {value}" for name, value in parts)
    text = parts[0][1] if len(parts) == 1 else text
    answers = _answers(chosen, number, row[chosen.target])
    return Item(
        record=Record(text, answers[0] if answers else None, person),
        answers=answers,
        question=question,
    )


def _answers(chosen: Benchmark, number: int, value: Any) -> tuple[str, ...]:
    """The right answers, the first one first; none where the Hub hides them."""
    if chosen.free:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise _wrong(chosen, number, chosen.target, "a list of texts")
        return tuple(dict.fromkeys(value))
    if value is None or value == -1:
        return ()
    if chosen.scale:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _wrong(chosen, number, chosen.target, "a number")
        return (f"{value:g}",)
    if isinstance(value, str) and value in chosen.labels:
        return (value,)
    if isinstance(value, int) and 0 <= value < len(chosen.labels):
        return (chosen.labels[value],)
    raise _wrong(chosen, number, chosen.target, f"one of {', '.join(chosen.labels)} or its index")


def _places(row: Row, number: int) -> tuple[str, str]:
    """The numbers of the row's text and question; a row that shares neither has its own number."""
    index = row.get("idx")
    if not isinstance(index, Mapping):
        return str(number), str(number)
    text = str(index["paragraph"] if "paragraph" in index else index["passage"])
    return text, f"{text}/{index['question'] if 'question' in index else index['query']}"


def _multirc(row: Row) -> dict[str, Any]:
    """Remove the sentence marks and numbers that some copies of the paragraphs have."""
    plain = re.sub(r"<b>\s*Sent(?:ence)? \d+:\s*</b>", " ", row["paragraph"])
    plain = re.sub(r"</?b>|<br\s*/?>", " ", plain)
    return {**row, "paragraph": " ".join(plain.split())}


def _record(row: Row) -> dict[str, Any]:
    """The highlights follow the passage as sentences; the entities stand in a list."""
    passage = re.sub(r"(?<![.?!\"'])\s*\n@highlight\n", ". ", row["passage"])
    passage = passage.replace("\n@highlight\n", " ")
    return {**row, "passage": passage, "entities": ", ".join(dict.fromkeys(row["entities"]))}


def _wsc(row: Row) -> dict[str, Any]:
    """The noun between asterisks, the pronoun between number signs."""
    words = row["text"].split()
    for span, sign in (("span1", "*"), ("span2", "#")):
        _mark(words, row[f"{span}_index"], row[f"{span}_text"].split(), sign)
    return {"text": " ".join(words)}


def _mark(words: list[str], first: int, span: Sequence[str], sign: str) -> None:
    """Put ``sign`` around the span that begins at word ``first``, and leave punctuation outside."""
    last = first + len(span) - 1
    if not 0 <= first <= last:
        raise IndexError
    end = len(span[-1]) if words[last].startswith(span[-1]) else len(words[last])
    words[last] = f"{words[last][:end]}{sign}{words[last][end:]}"
    words[first] = f"{sign}{words[first]}"


_PREPARED: Mapping[str, Callable[[Row], Mapping[str, Any]]] = {
    "superglue/multirc": _multirc,
    "superglue/record": _record,
    "superglue/wsc": _wsc,
}


def _wrong(chosen: Benchmark, number: int, column: str, wanted: str) -> ConfideError:
    return ConfideError(
        "benchmark.value",
        f"{chosen.name}: {column} of row {number} is not {wanted}.",
        "Use the rows of the Hub's data set.",
    )


# --- what a benchmark settles ---
#
# What the name of a benchmark settles (``data.benchmark``): what is learnt, from which columns,
# and by which metric.
#
# Kind, labels, scale and columns follow from the table of ``benchmarks``: another value beside the
# name is a contradiction, and refused. Metric and template are the benchmark's own unless others
# are chosen. A benchmark of classes may also be written out as text (``task.kind = seq2seq`` or
# ``causal``): the label names are then the words to write. Nothing here reads a row.


KEY = "data.benchmark"
# Every row becomes a record in these columns.
TEXT, TARGET = "text", "label"

Value = str | int | float | bool
# Kinds that write the answer, whatever the benchmark's own kind is.
_WRITTEN = tuple(k for k, task in TASKS.items() if task.language and task.target != "none")
_PLAIN = "{text}"  # of task.template: nobody has chosen one
_WRITTEN_METRIC = "exact-match"  # what accuracy is to an answer that is written


def settled(given: Mapping[str, Value]) -> dict[str, Value]:
    """The flat settings that the benchmark decides; none where no benchmark is named.

    Args:
        given: flat keys that somebody chose; an empty value is no choice.

    Raises:
        ConfideError: ``benchmark.unknown`` with the nearest name, or ``settings.combination`` for
            a choice that contradicts the benchmark.
    """
    name = given.get(KEY, "")
    if not isinstance(name, str) or not name:
        return {}
    benchmark = spec(name)
    kind = given.get("task.kind", benchmark.kind)
    if kind not in (benchmark.kind, *_WRITTEN):
        kinds = " or ".join(dict.fromkeys((benchmark.kind, *_WRITTEN)))
        _refuse(name, "task.kind", kind, f"is {kinds}", f"Set task.kind = {benchmark.kind!r}.")
    firm = _firm(benchmark, str(kind))
    for key, value in firm.items():
        if given.get(key, "") not in ("", value):
            hint = "Leave it empty." if isinstance(value, str) else f"Set {key} = {value:g}."
            _refuse(name, key, given[key], f"has {value!r}", hint)
    own: dict[str, Value] = {"task.metric": benchmark.metrics[0]}
    if kind in _WRITTEN:
        own = {"task.metric": _written_metric(benchmark), "task.template": benchmark.template}
    return firm | {k: v for k, v in own.items() if given.get(k, "") in ("", _PLAIN)}


def _firm(benchmark: Benchmark, kind: str) -> dict[str, Value]:
    labels = ",".join(benchmark.labels) if TASKS[kind].fewest_labels else ""
    firm: dict[str, Value] = {
        "task.kind": kind,
        "task.labels": labels,
        "data.text": TEXT,
        "data.target": TARGET,
    }
    if benchmark.scale is not None and TASKS[kind].scale:
        firm |= {"task.low": benchmark.scale[0], "task.high": benchmark.scale[1]}
    return firm


def _written_metric(benchmark: Benchmark) -> str:
    return benchmark.metrics[0] if benchmark.free else _WRITTEN_METRIC


def _refuse(name: str, key: str, value: object, has: str, hint: str) -> NoReturn:
    raise ConfideError(
        "settings.combination",
        f"{key} = {value!r:.100}, but {KEY} = {name!r:.100} {has}.",
        hint,
    )
