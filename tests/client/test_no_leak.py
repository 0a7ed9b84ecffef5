"""No private byte leaves: five hundred markers in the data, a failure injected at every place.

Looked for in the reply's bytes, the log, both output streams, every file that the holder writes,
the whole run folder and log of a coordinator, the app bundle and the wheel.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.task_identity import TaskIdentity

from confide.client import app as app_module
from confide.client import holder as holder_module
from confide.client.guard import release as release_module
from confide.client.holder import Holder
from confide.client.text import corpus
from confide.client.training import self_check
from confide.client.training import trainer as trainer_module
from confide.client.training.per_example import PerExample
from confide.client.training.private_step import PrivateOptimizer
from confide.client.training.trainer import Trainer
from confide.common.models import batches
from confide.common.models import loading as models
from confide.common.models.batches import EncodedText
from confide.common.privacy.ledger import Ledger
from confide.common.privacy.noise import SecureGenerator
from confide.common.privacy.plan import Plan
from confide.common.tasks.classification import Classification
from confide.common.text import readers
from confide.common.wire.messages import reply_from_records, request_to_records
from confide.server.run import run
from tests import tiny
from tests.client.conftest import Place, code
from tests.client.marked import (
    KINDS,
    LOUD,
    MARKER,
    PLACE_MARKER,
    RECORDS,
    Watch,
    failing,
    marked_rows,
    marked_words,
    move_to_marked_folder,
    warnings_on_stderr,
)
from tests.server import federated


@pytest.fixture
def watched(
    make_place: Callable[..., Place],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> tuple[Place, Watch]:
    place = make_place(data__person="person")
    move_to_marked_folder(place)
    models._load.cache_clear()  # a model that was checked already is not checked again
    place.task()  # the model is loaded, as at a warm holder
    Ledger.open(place.site.ledger).close()
    return place, Watch(place, capfd, caplog)


def test_there_are_five_hundred_markers() -> None:
    assert len(set(marked_words())) == len(marked_words()) == 3 * RECORDS >= 500


# Where the text may make something fail, after the charge: a code would tell of it, so that an
# update leaves all the same, of noise alone.
BY_TEXT: list[tuple[Any, str]] = [
    (Path, "read_bytes"),
    (readers, "_record"),
    (corpus, "records_that_fit"),
    (Classification, "encode"),
    (transformers.PreTrainedTokenizerBase, "__call__"),
    (EncodedText, "pieces"),
    (trainer_module, "forward"),
    (PerExample, "check"),
]
# (where, name): something fails loudly there, by another kind of exception each time
POINTS: list[tuple[Any, str]] = [
    (corpus, "identity_of"),
    (corpus, "usable_units"),
    (Classification, "logits"),
    (Classification, "losses"),
    (EncodedText, "__init__"),
    (batches, "chunks_by_length"),
    (self_check, "forward"),
    (trainer_module, "check_per_example"),
    (holder_module, "load_model"),
    (holder_module, "plan_of"),
    (torch.Tensor, "backward"),
    (PerExample, "forget"),
    (PrivateOptimizer, "__init__"),
    (PrivateOptimizer, "clip_and_accumulate"),
    (PrivateOptimizer, "add_noise"),
    (PrivateOptimizer, "step"),
    (SecureGenerator, "normal"),
    (SecureGenerator, "bernoulli"),
    (Plan, "draw"),
    (Trainer, "prepare"),
    (Trainer, "train"),
    (Ledger, "open"),
    (Ledger, "replay"),
    (Ledger, "charge"),
    (Ledger, "receipt"),
    (Ledger, "release"),
    (holder_module, "release"),
    (release_module, "encode_vector"),
    (release_module, "decode_vector"),
    (release_module, "reply_to_bytes"),
]


@pytest.mark.parametrize(
    ("owner", "name", "kind"),
    [
        pytest.param(owner, name, kind, id=f"{owner.__name__.rpartition('.')[2]}.{name}")
        for (owner, name), kind in zip(POINTS, LOUD, strict=False)
    ],
)
def test_a_failure_that_quotes_the_text_everywhere_leaves_as_a_code(
    watched: tuple[Place, Watch],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    kind: tuple[str, Callable[[], BaseException], str],
) -> None:
    place, watch = watched
    task = place.task()
    with monkeypatch.context() as patch, warnings_on_stderr():
        patch.setattr(owner, name, failing(kind[1]))
        reply = place.holder.handle(task)
    assert code(reply) == kind[2]
    assert watch.hits(reply) == []


@pytest.mark.parametrize(
    ("owner", "name", "kind"),
    [
        pytest.param(owner, name, kind, id=f"{owner.__name__.rpartition('.')[2]}.{name}")
        for (owner, name), kind in zip(BY_TEXT, LOUD, strict=False)
    ],
)
def test_a_failure_that_the_text_may_have_caused_is_not_seen_at_all(
    watched: tuple[Place, Watch],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    kind: tuple[str, Callable[[], BaseException], str],
) -> None:
    place, watch = watched
    assert code(place.holder.handle(place.task(1))) == "update"  # the model was checked
    place.restart()
    task = place.task(2)
    with monkeypatch.context() as patch, warnings_on_stderr():
        patch.setattr(owner, name, failing(kind[1]))
        reply = place.holder.handle(task)
    assert code(reply) == "update"
    assert watch.hits(reply) == []


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind[0]) for kind in KINDS])
@pytest.mark.parametrize("name", ["train", "prepare"])
def test_every_kind_of_failure_leaves_as_a_code(
    watched: tuple[Place, Watch],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: tuple[str, Callable[[], BaseException], str],
) -> None:
    place, watch = watched
    task = place.task()
    with warnings_on_stderr():
        monkeypatch.setattr(Trainer, name, failing(kind[1]))
        reply = place.holder.handle(task)
    assert code(reply) == kind[2]
    assert watch.hits(reply) == []


def nan(_: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.sum(1) * torch.nan


@pytest.mark.parametrize(
    ("owner", "name", "failure", "expected"),
    [
        (Classification, "losses", nan, "train.self-check"),
        (Trainer, "train", lambda *_, **__: torch.full((3,), torch.nan), "release.not-finite"),
    ],
)
def test_a_value_that_is_not_finite_leaves_as_a_code(
    watched: tuple[Place, Watch],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    failure: Callable[..., Any],
    expected: str,
) -> None:
    place, watch = watched
    task = place.task()
    monkeypatch.setattr(owner, name, failure)
    reply = place.holder.handle(task)
    assert code(reply) == expected
    assert watch.hits(reply) == []


ROW = {"text": "zqt001 a day", "label": "positive", "person": "zqp001"}
BROKEN: list[tuple[str, str, str]] = [
    ("text.jsonl", '{"text": "zqt001", "label"', "update"),
    ("text.jsonl", "zqt001 zqt002", "update"),
    ("text.jsonl", json.dumps({"zqk001 was here": 1, "label": "positive", "person": "1"}),
     "update"),
    ("text.jsonl", json.dumps(ROW | {"label": "zql001"}), "update"),
    ("text.jsonl", json.dumps(ROW | {"label": {"zql001": 1}}), "update"),
    ("text.jsonl", json.dumps(ROW | {"text": ["zqt001"]}), "update"),
    ("text.jsonl", json.dumps(ROW | {"person": ["zqp001"]}), "update"),
    ("text.jsonl", json.dumps(ROW | {"text": "zqt001 \ud800"}), "update"),
    ("text.csv", "zqt001 was here,positive,zqp001\n", "update"),
    ("text.csv", 'text,label,person\n"zqt001,positive,1\n', "update"),
    ("text.csv", "text,label,person\nzqt001,positive\n", "update"),
    ("text.parquet", "PAR1 zqt001 PAR1", "update"),
    ("text.txt", "zqt001\n", "update"),
    ("text.zqf001", "zqt001\n", "data.unknown-suffix"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN)
def test_a_broken_file_is_never_quoted(
    watched: tuple[Place, Watch], name: str, content: str, expected: str
) -> None:
    place, watch = watched
    place.data.unlink()
    place.data = place.data.with_name(name)
    place.data.write_text(content, encoding="utf-8")
    object.__setattr__(place.site, "data", place.data)
    reply = place.holder.handle(place.task())
    assert code(reply) == expected
    assert watch.hits(reply) == []


def test_an_update_carries_no_text_either(watched: tuple[Place, Watch]) -> None:
    place, watch = watched
    reply = place.holder.handle(place.task())
    assert code(reply) == "update"
    assert watch.hits(reply) == []


def test_the_watch_sees_a_marker_wherever_it_is(
    watched: tuple[Place, Watch],
) -> None:
    place, watch = watched
    reply = place.holder.handle(place.task())
    Path(f"{place.site.ledger}-journal").write_bytes(b"..zqt001..")
    print("zqt002")
    print("zqn003", file=sys.stderr)
    logging.getLogger("transformers").warning("zqp004")
    object.__setattr__(reply, "holder", "zqf004")
    assert watch.hits(reply) == ["reply", "stdout", "stderr", "log", "zqf003.sqlite-journal"]


# The ClientApp


@pytest.mark.parametrize("name", ["site_of", "request_from_records", "reply_to_records", "Holder"])
def test_no_failure_of_the_app_quotes_anything(
    watched: tuple[Place, Watch], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place, watch = watched
    for identity in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, identity, 1)
    monkeypatch.setattr(app_module, "_HOLDERS", {})
    node = {"data": str(place.data), "name": "clinic"}
    context = Context(1, 1, node, RecordDict(), {})
    message = Message(content=request_to_records(place.task()), dst_node_id=1, message_type="train")
    # The app imports the holder only where there is one.
    owner = holder_module if name == "Holder" else app_module
    original, calls = getattr(owner, name), []

    def once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            failing(lambda: KINDS[1][1]())()
        return original(*arguments)

    monkeypatch.setattr(owner, name, once)
    with warnings_on_stderr():
        answered = app_module.app(message, context)
    assert not answered.has_error()
    reply = reply_from_records(answered.content)
    assert code(reply) == "holder.failed"
    assert watch.hits(reply) == []


# A whole run with holders that fail


class Failing(Holder):
    """Fails loudly in every round, each time in another way."""

    def handle(self, task: Any) -> Any:
        kind = KINDS[(task.round * 5 + int(self.site.name[-1])) % len(KINDS)]
        with pytest.MonkeyPatch.context() as patch, warnings_on_stderr():
            patch.setattr(Trainer, "train", failing(kind[1]))
            return super().handle(task)


def test_nothing_of_failing_holders_is_in_the_coordinators_folder_log_or_output(
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    data = tmp_path / "federation"
    for number in range(5):
        tiny.write_jsonl(data / f"holder-{number:02d}.jsonl", marked_rows(100))
    tiny.write_jsonl(data / "public.jsonl", tiny.rows(40, seed=1000))
    members = federated.holders(data, tmp_path / "own")
    members[2:] = [Failing(member.site) for member in members[2:]]
    settings = federated.config(tiny_model, data, tmp_path / "runs", round__count=4)
    folder = run(settings, federated.Transport(members))
    assert {left["holder"] for event in federated.events(folder, "round")
            for left in event["left_out"]} == {"holder-02", "holder-03", "holder-04"}  # fmt: skip
    out, err = capfd.readouterr()
    seen = {"stdout": out.encode(), "stderr": err.encode(), "log": caplog.text.encode()}
    written = [path for path in folder.path.rglob("*") if path.is_file()]
    assert {"report.json", "report.html", "metrics.jsonl"} <= {path.name for path in written}
    seen |= {path.name: path.read_bytes() for path in written}
    assert [name for name, content in seen.items() if PLACE_MARKER.search(content)] == []


# What is shipped


def said_in(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a bundle or wheel. A wheel's RECORD has hashes of all others in letters of base64,
    where a marker of four letters comes up by chance; of it only the names count."""
    content = archive.read(name)
    if not name.endswith(".dist-info/RECORD"):
        return content
    return b"\n".join(line.split(b",")[0] for line in content.splitlines())


def test_the_bundle_and_the_wheel_carry_nothing_that_lies_about(root: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for room in ("confide", "common", "client", "server", "simulations"):
        shutil.copytree(
            root / room, tree / room, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(root / name, tree / name)
    words = marked_words()
    places = [tree, *(tree / room for room in ("client", "common/text", "simulations", "runs/x"))]
    for number, word in enumerate(words):
        folder = places[number % len(places)]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = (".jsonl", ".csv", ".toml", ".md", ".json", ".sqlite", ".log")[number % 7]
        (folder / f"{word}{suffix}").write_text(word)
    bundle = build_fab_from_disk(tree)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path / "wheel"), "."]
    subprocess.run(command, cwd=tree, check=True, timeout=100, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    for shipped in (bundle, wheel.read_bytes()):
        with zipfile.ZipFile(io.BytesIO(shipped)) as archive:
            names = archive.namelist()
            found = [n for n in names if MARKER.search(n.encode() + said_in(archive, n))]
        assert len(names) > 50
        assert found == []
