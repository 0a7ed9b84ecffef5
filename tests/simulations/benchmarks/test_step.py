"""The table of private steps: who is timed, who is refused, and how a figure comes about."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.simulations import cli
from confide.simulations.benchmarks import engines, step, workload
from confide.simulations.benchmarks.engines import CONFIDE, ENGINES, PLAIN, Engine, Step, quiet
from confide.simulations.benchmarks.pairs import Row, interleaved, markdown, ratios
from confide.simulations.benchmarks.step import TOLERANCE, check, reference, step_rows
from confide.simulations.benchmarks.workload import Model, Setup, Workload, make

SETUP = Setup(batch=4, tokens=6)
EXACT = Setup(batch=4, tokens=6, dtype="float64")
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 60,
}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
_SHAPES: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 60},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, **_SPECIAL},
    "t5": {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 60,
    },
    "llama": {**_BERT, "num_key_value_heads": 1, **_SPECIAL},
}
TINY = {family: Model(name=family, family=family, config=c) for family, c in _SHAPES.items()}
INSTALLED = [engine for engine in ENGINES.values() if engine.private and engine.installed]


def hooks(work: Workload, clip: float, noise: float) -> Step:
    return ENGINES["opacus-hooks"].make(work, clip, noise)


def mean_for_sum(work: Workload, clip: float, noise: float) -> Step:
    """Hands out each example's gradient divided by the size of the batch."""
    losses = work.losses
    vars(work)["losses"] = lambda model=None: losses(model) / work.size
    return hooks(work, clip, noise)


def unclipped(work: Workload, clip: float, noise: float) -> Step:
    return hooks(work, 1e6 * clip, noise)


def batch_clipped(work: Workload, clip: float, noise: float) -> Step:
    """The gradient of the batch, clipped as a whole."""

    def step() -> None:
        work.losses().sum().backward()
        torch.nn.utils.clip_grad_norm_(work.trained(), clip)

    return step


def noisy(work: Workload, clip: float, noise: float) -> Step:
    return hooks(work, clip, 0.01)


def failing(work: Workload, clip: float, noise: float) -> Step:
    raise NotImplementedError("this layer")


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is taken in a process of its own, which takes seconds to start."""
    monkeypatch.setattr(step, "peak", lambda *_: 7_000_000)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("engine", INSTALLED, ids=lambda engine: engine.name)
def test_every_engine_computes_the_clipped_sum_of_the_loop(family: str, engine: Engine) -> None:
    work = make(TINY[family], EXACT)
    with quiet():
        assert check(engine, work, reference(work)) <= TOLERANCE


@pytest.mark.parametrize("broken", [mean_for_sum, unclipped, batch_clipped, noisy])
def test_an_engine_that_computes_something_else_is_refused(broken: Any) -> None:
    work = make(TINY["bert"], EXACT)
    with quiet(), pytest.raises(ConfideError, match=r"bench\.unequal.*time what is wrong"):
        check(Engine(name="broken", make=broken), work, reference(work))


def test_the_reference_clips_some_examples_and_leaves_others() -> None:
    work = make(TINY["bert"], SETUP)
    expected = reference(work)
    norms = []
    for index in range(work.size):
        work.model.zero_grad()
        work.row(index).losses().sum().backward()
        norms.append(float(work.gradient().norm()))
    assert min(norms) < expected.clip < max(norms)


def test_twins_share_the_frozen_weights_and_no_trained_one() -> None:
    work = make(TINY["gpt2"], SETUP)
    pairs = zip(work.model.parameters(), work.twin().model.parameters(), strict=True)
    assert all((one is other) == (not one.requires_grad) for one, other in pairs)


@pytest.mark.parametrize("family", TINY)
def test_in_bfloat16_only_the_base_is_bfloat16(family: str) -> None:
    work = make(TINY[family], replace(SETUP, dtype="bfloat16"))
    kinds = {(p.requires_grad, p.dtype) for n, p in work.model.named_parameters() if "ori" not in n}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    CONFIDE.make(work, 1.0, 1.0)()


def test_the_table_has_a_row_for_every_model_and_engine(no_memory: None) -> None:
    models = [TINY["bert"], TINY["llama"]]
    missing = Engine(name="missing", make=hooks, needs="no_such_package")
    contenders = [CONFIDE, ENGINES["opacus-ghost"], missing]
    rows = list(step_rows(models, contenders, SETUP, repetitions=3))
    names = ["plain", "confide", "opacus-ghost", "missing"]
    assert [(r.model, r.engine) for r in rows] == [(m.name, n) for m in models for n in names]
    assert [len(row.ratios) for row in rows] == [3, 3, 3, 0] * 2
    assert rows[0].ratios == (1.0, 1.0, 1.0)
    assert rows[0].quartiles == (1.0, 1.0)
    assert rows[1].memory == 1.0
    table = markdown(rows).splitlines()
    assert len(table) == 2 + len(rows)
    assert table[5] == "| bert | missing | not installed |  |  |  |"


@pytest.mark.parametrize(
    ("broken", "note"),
    [(failing, "NotImplementedError"), (unclipped, "The clipped sum of other is off by")],
)
def test_what_another_engine_fails_with_is_said_in_its_row(
    broken: Any, note: str, no_memory: None
) -> None:
    other = Engine(name="other", make=broken)
    rows = list(step_rows([TINY["bert"]], [other], SETUP, repetitions=1))
    assert rows[1].note.startswith(note)
    assert rows[1].median is None


def test_the_benchmark_stops_when_our_own_engine_is_wrong(
    monkeypatch: pytest.MonkeyPatch, no_memory: None
) -> None:
    ours = replace(CONFIDE, make=unclipped)
    monkeypatch.setattr(step, "CONFIDE", ours)
    with pytest.raises(ConfideError, match=r"bench\.unequal"):
        list(step_rows([TINY["bert"]], [ours], SETUP, repetitions=1))


def test_repetitions_rotate_the_order_and_pair_with_their_own_base() -> None:
    calls: list[str] = []

    def named(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    seconds = interleaved({name: named(name) for name in "abc"}, 3)
    assert "".join(calls) == "abcbcacab"
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert ratios({"a": [2.0, 4.0], "b": [3.0, 4.0]}, "b", "a") == (1.5, 1.0)


def test_the_figure_is_the_median_with_its_quartiles() -> None:
    row = Row(model="m", engine="e", seconds=(1.0,) * 5, ratios=(1.0, 1.1, 1.2, 1.3, 9.0))
    assert row.median == 1.2
    assert row.quartiles == (1.1, 1.3)
    assert "| 1.20 (1.10–1.30) | – | 1 | – |" in markdown([row])
    assert row.to_json()["median"] == 1.2
    assert "| 0.037 (0.037–0.037) |" in markdown([replace(row, ratios=(0.0371,))])


def test_the_peak_of_a_step_holds_its_logits_and_their_gradient() -> None:
    wide = replace(TINY["gpt2"], config={**_SHAPES["gpt2"], "vocab_size": 4000})
    setup = Setup(batch=16, tokens=64)
    logits = setup.batch * setup.tokens * 4000 * 4
    found = step.peak(wide, PLAIN.name, setup)
    assert found is not None
    assert 2 * logits < found < 6 * logits


def test_a_step_that_fails_in_its_own_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nMemoryError: all\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ConfideError, match=r"bench\.memory.*plain on bert.*: MemoryError: all"):
        step.peak(TINY["bert"], PLAIN.name, SETUP)


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    cli.add_commands(app)
    return CliRunner().invoke(app, ["bench", "step", *arguments])


@pytest.mark.parametrize(
    ("option", "name", "code", "hint"),
    [
        ("--models", "GPT2", "bench.model", "Did you mean 'GPT-2'?"),
        ("--engines", "opacus-host", "bench.engine", "Did you mean 'opacus-ghost'?"),
        ("--dtype", "float16", "bench.dtype", "Did you mean 'bfloat16'?"),
        ("--device", "tpu", "bench.device", "Did you mean 'cpu'?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(
    option: str, name: str, code: str, hint: str
) -> None:
    error = invoke(option, name).exception
    assert isinstance(error, ConfideError)
    assert (error.code, error.hint) == (code, hint)


def test_the_command_prints_a_line_of_json_for_each_row(
    monkeypatch: pytest.MonkeyPatch, no_memory: None
) -> None:
    monkeypatch.setattr(workload, "MODELS", TINY)
    monkeypatch.setattr(engines, "ENGINES", {"plain": PLAIN, "confide": CONFIDE})
    threads = str(torch.get_num_threads())
    done = invoke(
        *("--models", "bert", "--batch", "2", "--tokens", "4", "--repetitions", "2"),
        *("--threads", threads, "--json"),
    )
    assert done.exception is None, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["engine"] for row in rows] == ["plain", "confide"]
    assert rows[1]["difference"] <= TOLERANCE
