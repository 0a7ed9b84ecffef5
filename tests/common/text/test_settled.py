"""The name of a benchmark settles what is learnt; what contradicts it is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import from_flat
from confide.common.tasks import task_for
from confide.common.text.benchmarks import BENCHMARKS

MODEL = {"model.name": "m"}


def named(name: str, **changes: Any) -> dict[str, Any]:
    return {**MODEL, "data.benchmark": name} | {k.replace("__", "."): v for k, v in changes.items()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_name_is_all_that_a_benchmark_needs(name: str) -> None:
    settings, benchmark = from_flat(named(name)), BENCHMARKS[name]
    assert settings.task.kind == benchmark.kind
    assert settings.task.label_names == benchmark.labels
    assert (settings.data.text, settings.data.target) == ("text", "label")
    assert task_for(settings.task).metrics[0] == benchmark.metrics[0]


@pytest.mark.parametrize("kind", ["", "seq2seq", "causal"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_was_settled_stays_as_it_is_at_a_holder(name: str, kind: str) -> None:
    settings = from_flat(named(name, task__kind=kind) if kind else named(name))
    assert from_flat(settings.to_flat()) == settings


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
def test_labels_may_be_written_out_as_text(kind: str) -> None:
    settings = from_flat(named("glue/sst2", task__kind=kind))
    assert settings.task.template == "sst2 sentence: {text}"
    assert (settings.task.labels, settings.task.metric) == ("", "exact-match")


def test_a_regression_has_the_scale_of_its_benchmark() -> None:
    task = from_flat(named("glue/stsb")).task
    assert (task.kind, task.low, task.high) == ("regression", 0.0, 5.0)


def test_the_short_name_does_where_one_suite_alone_has_it() -> None:
    assert from_flat(named("cola")).task.metric == "mcc"


def test_metric_and_template_may_be_chosen() -> None:
    assert from_flat(named("glue/cola", task__metric="accuracy")).task.metric == "accuracy"
    changes = {"task__kind": "seq2seq", "task__template": "Is it good? {text}"}
    assert from_flat(named("glue/sst2", **changes)).task.template == "Is it good? {text}"


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("glue/sst2", "task.labels", "no,yes", "'negative,positive'"),
        ("glue/sst2", "task.labels", "positive,negative", "'negative,positive'"),
        ("glue/sst2", "task.kind", "regression", "classification or seq2seq or causal"),
        ("glue/sst2", "task.kind", "masked", "task.kind = 'classification'"),
        ("glue/stsb", "task.high", 4.0, "task.high = 5"),
        ("glue/sst2", "data.text", "sentence", "'text'"),
        ("glue/sst2", "data.target", "class", "'label'"),
    ],
)
def test_a_contradiction_is_refused_by_both_names(
    name: str, key: str, value: Any, says: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        from_flat({**named(name), key: value})
    assert caught.value.code == "settings.combination"
    assert all(word in str(caught.value) for word in (key, repr(value), name, says))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("glue/sst-2", "Did you mean 'glue/sst2'"),
        ("superglue/bool", "Did you mean 'superglue/boolq'"),
        ("rte", "glue/rte or superglue/rte"),
        ("x" * 10_000, "Known:"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, says: str) -> None:
    with pytest.raises(ConfideError, match=r"benchmark\.unknown") as caught:
        from_flat(named(name))
    assert says in str(caught.value)
    assert len(caught.value.message) < 200


def test_the_apps_own_config_takes_a_benchmark_once_the_demos_labels_are_empty(root: Path) -> None:
    app = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    flat = {f"{room}.{k}": v for room, values in app.items() for k, v in values.items()}
    assert from_flat({**flat, "data.benchmark": "glue/sst2"}).task.metric == "accuracy"
    with pytest.raises(ConfideError, match=r"task\.labels = 'negative,positive'.*Leave it empty"):
        from_flat({**flat, "data.benchmark": "glue/cola"})
    settled = from_flat({**flat, "data.benchmark": "glue/cola", "task.labels": ""})
    assert settled.task.label_names == ("unacceptable", "acceptable")
