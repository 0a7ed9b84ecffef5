"""Hostile tasks: each is refused with its own code, before the text is opened, without a trace.

Every mutation of an honest task is sent to a holder that has no ledger yet and to one that has
answered a round before, in its own process and as a message through the ClientApp. The two holders
serve all mutations, one after the other, so that what any of them left behind would show.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from confide.client import app as app_module
from confide.client.app import answer
from confide.client.guard.policy import Policy
from confide.common.privacy.ledger import Ledger
from confide.common.settings import COORDINATORS_OWN, from_flat
from confide.common.wire.messages import Refusal, TrainRequest, Update, request_to_records
from tests import tiny
from tests.client.conftest import Place, code
from tests.client.opened import OPENED, watching
from tests.messages import altered, framed, opened, record

MARKER = "zqhostile"
LONG = "x" * 9000 + MARKER
PATHS = ("/etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "C:\\Windows", "file:///etc/passwd")
MOST_LOG_LINE = 1500


def files(*folders: Path) -> dict[str, str]:
    """Every file below, with a hash of what is in it."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


# The two holders


def a_place(folder: Path, model: Path, **settings: Any) -> Place:
    policy = Policy(
        max_delta=1e-2,
        base_models=(str(model),),
        coordinators=("The Institute",),
    )
    return Place(folder, model, policy, **{"run__coordinator": "The Institute", **settings})


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Place:
    return a_place(tmp_path_factory.mktemp("fresh"), tiny_model)


@pytest.fixture(scope="module")
def seasoned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Place:
    place = a_place(tmp_path_factory.mktemp("seasoned"), tiny_model)
    assert code(place.holder.handle(place.task(1))) == "update"
    return place


@pytest.fixture(params=["fresh", "seasoned"])
def target(request: pytest.FixtureRequest) -> Place:
    place: Place = request.getfixturevalue(request.param)
    return place


@pytest.fixture
def checked(
    target: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Place]:
    """The target; afterwards nothing may have changed, been opened, or be in the log."""
    monkeypatch.chdir(tmp_path)
    caches = [Path(os.environ[name]) for name in ("CONFIDE_CACHE", "HF_HOME")]
    everywhere = (target.data.parent, tmp_path, *caches)
    before, caplog.handler.level = files(*everywhere), 0
    yield target
    assert files(*everywhere) == before
    assert str(target.data) not in OPENED.names
    assert OPENED.for_writing == []
    # Of the test itself: at its teardown the log is another, empty one.
    logged = [record.getMessage() for record in caplog.get_records("call")]
    assert logged
    assert all(MARKER not in line and "\n" not in line for line in logged)
    assert all(len(line) < MOST_LOG_LINE for line in logged)


def context(place: Place, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Of a node that is the place's holder."""
    monkeypatch.setattr(app_module, "_HOLDERS", {place.site: place.holder})
    monkeypatch.setattr(app_module, "site_of", lambda *_: place.site)
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def in_process(place: Place, task: TrainRequest) -> str:
    """The refusal's code, after the checks that a second attempt would hide."""
    with watching():
        found = code(place.holder.handle(task))
    assert str(place.data) not in OPENED.names
    assert OPENED.for_writing == []
    return found


def sent(content: RecordDict, where: Context) -> str:
    message = Message(content=content, dst_node_id=1, message_type="train")
    with watching():
        reply = answer(message, where)
    assert isinstance(reply, Refusal)
    return reply.code


# Mutations of the settings: name, change, code

RANGE, TYPE, UNKNOWN = "settings.range", "settings.type", "settings.unknown-key"
MODELS = "policy.base-models"

SETTINGS: list[tuple[str, Mapping[str, Any], str]] = [
    # more work than anybody has time for
    ("epochs of a hundred", {"train.epochs": 100}, UNKNOWN),
    ("steps without end", {"train.steps": 10**9}, RANGE),
    ("steps: many", {"round.mode": "steps", "train.steps": 1001}, "policy.max-steps-per-round"),
    ("steps: none", {"train.steps": 0}, RANGE),
    ("steps in all", {"round.mode": "steps", "train.steps": 900, "round.count": 20},
     "policy.max-steps-per-run"),
    ("rounds without end", {"round.count": 10**12}, RANGE),
    ("rounds: many", {"round.count": 201}, "policy.max-rounds"),
    ("batch huge", {"train.batch": 1_000_000}, "policy.max-batch"),
    ("batch beyond all", {"train.batch": 10**30}, RANGE),
    ("batch negative", {"train.batch": -1}, RANGE),
    ("records of a person huge", {"privacy.records-per-person": 10**6},
     "policy.max-records-per-person"),
    ("length huge", {"train.max-length": 8192}, "policy.max-length"),
    ("length beyond all", {"train.max-length": 10**9}, RANGE),
    ("rank huge", {"lora.rank": 10**6}, RANGE),
    ("rank of another adapter", {"lora.rank": 256}, "task.schema"),
    ("layers that are not there", {"lora.layers": 1000}, RANGE),
    # learning rates
    ("lr nan", {"train.lr": math.nan}, RANGE),
    ("lr infinite", {"train.lr": math.inf}, RANGE),
    ("lr huge", {"train.lr": 1e300}, RANGE),
    ("lr negative", {"train.lr": -0.1}, RANGE),
    # less privacy
    ("trust off", {"privacy.trust": "off"}, "policy.allow-unprotected"),
    ("trust off, noise claimed", {"privacy.trust": "off", "privacy.noise-multiplier": 9.0},
     "settings.combination"),
    ("trust of somebody else", {"privacy.trust": "central"}, RANGE),
    ("trust in look-alike letters", {"privacy.trust": "l\u043ecal"}, RANGE),
    ("sigma negative", {"privacy.noise-multiplier": -1.0}, RANGE),
    ("sigma nan", {"privacy.noise-multiplier": math.nan}, RANGE),
    ("sigma infinite", {"privacy.noise-multiplier": math.inf}, RANGE),
    ("sigma tiny", {"privacy.noise-multiplier": 1e-12}, "policy.min-noise-multiplier"),
    ("sigma denormal", {"privacy.noise-multiplier": 5e-324}, "policy.min-noise-multiplier"),
    ("sigma just too small", {"privacy.noise-multiplier": 0.3999}, "policy.min-noise-multiplier"),
    ("clip x1000", {"privacy.clip": 1000.0}, "policy.max-clip"),
    ("clip zero", {"privacy.clip": 0.0}, RANGE),
    ("clip infinite", {"privacy.clip": math.inf}, RANGE),
    ("delta 0.1", {"privacy.delta": 0.1}, "policy.max-delta"),
    ("delta 1", {"privacy.delta": 1.0}, RANGE),
    ("delta zero", {"privacy.delta": 0.0}, RANGE),
    ("epsilon huge", {"privacy.epsilon": 99.0}, "policy.max-epsilon-per-run"),
    ("epsilon beyond all", {"privacy.epsilon": 1e9}, RANGE),
    ("epsilon nan", {"privacy.epsilon": math.nan}, RANGE),
    ("unit that nobody knows", {"privacy.unit": "household"}, RANGE),
    ("a holder alone as the unit", {"privacy.unit": "holder"}, "settings.combination"),
    ("persons without a column", {"privacy.unit": "person"}, "settings.combination"),
    # another model
    ("model: a path", {"model.name": "/etc"}, MODELS),
    ("model: upwards", {"model.name": "../../../etc"}, MODELS),
    ("model: far upwards", {"model.name": "../" * 200 + MARKER}, MODELS),
    ("model: home", {"model.name": "~/.cache"}, MODELS),
    ("model: a URL", {"model.name": "https://example.org/model"}, MODELS),
    ("model: of the Hub", {"model.name": "someone/remote-model"}, MODELS),
    ("model: a NUL", {"model.name": "a\x00b"}, MODELS),
    ("model: half a character", {"model.name": "a\ud800b"}, "settings.range"),
    ("model: right to left", {"model.name": "someone/\u202eledom"}, MODELS),
    ("model: with a pin of its own", {"model.name": "a@sha256:" + "0" * 64}, MODELS),
    ("model: long", {"model.name": LONG}, MODELS),
    ("model: none", {"model.name": ""}, "settings.combination"),
    ("remote code, a key", {"model.trust-remote-code": True}, UNKNOWN),
    ("remote code, underscores", {"trust_remote_code": True}, UNKNOWN),
    ("remote code, a word", {"task.kind": "remote-code"}, RANGE),
    ("revision", {"model.revision": "main"}, UNKNOWN),
    # another task, other columns, another coordinator
    ("task of another kind", {"task.kind": "poetry"}, RANGE),
    ("column that is not listed", {"data.text": "diagnosis"}, "contract.text"),
    ("target that is not listed", {"data.target": "ssn"}, "contract.target"),
    ("person that is not listed", {"data.person": "ward"}, "contract.person"),
    ("coordinator unknown", {"run.coordinator": "The Institut"}, "policy.coordinators"),
    ("coordinator without a name", {"run.coordinator": ""}, "policy.coordinators"),
    ("targets: a regular expression", {"lora.targets": ".*"}, RANGE),
    ("targets: embeddings", {"lora.targets": "word_embeddings"}, RANGE),
    # things that are no scalars, and scalars of the wrong kind
    ("a list", {"train.batch": [32]}, TYPE),
    ("a list, deep", {"train.batch": json.loads("[" * 500 + "]" * 500)}, TYPE),
    ("a table", {"train.lr": {"a": 1}}, TYPE),
    ("nothing", {"train.lr": None}, TYPE),
    ("a truth value for a number", {"train.batch": True}, TYPE),
    ("a truth value for sigma", {"privacy.noise-multiplier": True}, TYPE),
    ("a number for text", {"model.name": 7}, TYPE),
    ("a text for a number", {"train.batch": "32"}, TYPE),
    ("a fraction for a count", {"train.batch": 2.5}, TYPE),
    ("a number of 400 digits", {"privacy.epsilon": 10**400}, RANGE),
    ("labels in a list", {"task.labels": ["negative", "positive"]}, TYPE),
    ("labels: one", {"task.labels": "one"}, "settings.combination"),
    # keys
    ("a key of nobody", {"zz.zz": 1}, UNKNOWN),
    ("an empty key", {"": 1}, UNKNOWN),
    ("a path as a key", {"data.ledger": "/root/x"}, UNKNOWN),
    ("the policy as a key", {"policy": "none"}, UNKNOWN),
    ("the policy's own limit", {"policy.max-epsilon": 100}, UNKNOWN),
    ("a key in wide letters", {"\uff54rain.batch": 1}, UNKNOWN),
    ("a key in capitals", {"Train.batch": 1}, UNKNOWN),
    ("a key with a line break", {"train.batch\nrefused: nothing": 1}, UNKNOWN),
    ("a long key", {LONG: 1}, UNKNOWN),
    ("a thousand keys", {f"key-{i}": i for i in range(1000)}, UNKNOWN),
    ("wire by pickle", {"wire.encoding": "pickle"}, RANGE),
    ("mode of nobody", {"round.mode": LONG}, RANGE),
]  # fmt: skip

# A path in every setting that is text: the code by setting; the others know their words.
OF_PATHS = {
    **dict.fromkeys(COORDINATORS_OWN, "task.path"),
    "federation.partition": RANGE,
    "model.name": MODELS,
    "privacy.noise-multiplier": TYPE,  # a word or a number
    "privacy.clip-quantile": TYPE,
    "task.labels": "settings.combination",
    "task.class-weights": "settings.combination",
    "task.class-rates": "settings.combination",
    "task.template": "settings.combination",
    "data.text": "contract.text",
    "data.target": "contract.target",
    "data.person": "contract.person",
    "data.benchmark": "benchmark.unknown",
    "run.coordinator": "policy.coordinators",
}
for key, value in from_flat({"model.name": "m", "task.labels": "a,b"}).to_flat().items():
    if isinstance(value, str):
        SETTINGS += [
            (f"{key}: {path}", {key: path}, OF_PATHS.get(key, RANGE)) for path in PATHS[:2]
        ]
SETTINGS += [(f"run.out: {path}", {"run.out": path}, "task.path") for path in PATHS[2:]]

BY_NAME = [pytest.param(change, expected, id=name) for name, change, expected in SETTINGS]


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    names = [name for name, _, _ in SETTINGS] + [name for name, _, _ in TASKS] + list(RECORDS)
    assert len(names) == len(set(names)) >= 100


@pytest.mark.parametrize(("change", "expected"), BY_NAME)
def test_hostile_settings_are_refused_in_process_and_as_a_message(
    checked: Place, change: Mapping[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = checked.task(2, settings=checked.settings | change)
    assert in_process(checked, task) == expected
    assert sent(request_to_records(task), context(checked, monkeypatch)) == expected


# Mutations of the other fields of a task


def changed(**fields: Any) -> Callable[[Place], TrainRequest]:
    return lambda place: place.task(**fields)


def poisoned(value: float) -> Callable[[Place], TrainRequest]:
    def make(place: Place) -> TrainRequest:
        task = place.task(2)
        values = np.frombuffer(task.adapter, dtype="<f4").copy()
        values[len(values) // 2] = value
        return replace(task, adapter=values.tobytes())

    return make


def resized(change: int) -> Callable[[Place], TrainRequest]:
    def make(place: Place) -> TrainRequest:
        task = place.task(2)
        adapter = task.adapter[:change] if change < 0 else task.adapter + bytes(change)
        return replace(task, adapter=adapter)

    return make


TASKS: list[tuple[str, Callable[[Place], TrainRequest], str]] = [
    ("round zero", changed(number=0), "task.round"),
    ("round beyond the last", changed(number=3), "task.round"),
    ("round far beyond", changed(number=2**31 - 1), "task.round"),
    ("adapter nan", poisoned(math.nan), "adapter.not-finite"),
    ("adapter infinite", poisoned(math.inf), "adapter.not-finite"),
    ("adapter minus infinite", poisoned(-math.inf), "adapter.not-finite"),
    ("adapter empty", changed(number=2, adapter=b""), "wire.size"),
    ("adapter one value short", resized(-4), "wire.size"),
    ("adapter one byte short", resized(-1), "wire.size"),
    ("adapter one value long", resized(4), "wire.size"),
    ("adapter of 100 MB", resized(100_000_000), "wire.size"),
    ("another rest", changed(number=2, rest="0" * 64), "task.initial"),
    ("nothing sent", changed(number=2, sent="0" * 6, adapter=b""), "task.initial"),
    ("no word of what is sent", changed(number=2, sent="", adapter=b""), "task.schema"),
    ("schema of another", changed(number=2, schema="0" * 64), "task.schema"),
    ("schema empty", changed(number=2, schema=""), "task.schema"),
    ("schema long", changed(number=2, schema=LONG), "task.schema"),
]


@pytest.mark.parametrize(
    ("make", "expected"), [pytest.param(make, expected, id=name) for name, make, expected in TASKS]
)
def test_hostile_tasks_are_refused_in_process_and_as_a_message(
    checked: Place,
    make: Callable[[Place], TrainRequest],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = make(checked)
    assert in_process(checked, task) == expected
    assert sent(request_to_records(task), context(checked, monkeypatch)) == expected


# Mutations of the message


def header(**entries: Any) -> Callable[[RecordDict], RecordDict]:
    def make(content: RecordDict) -> RecordDict:
        return altered(content, **entries)

    return make


def raw(text: str | bytes) -> Callable[[RecordDict], RecordDict]:
    """A header of any text, before the honest payload."""
    return lambda content: record(framed(text, opened(content)[1]))


def extra(content: RecordDict) -> RecordDict:
    content["more"] = ConfigRecord({"path": "/etc/passwd"})
    return content


def big_keys(content: RecordDict) -> RecordDict:
    return header(settings={f"k{i}": 0 for i in range(1_000_000)})(content)


RECORDS: dict[str, Callable[[RecordDict], RecordDict]] = {
    "message empty": lambda _: RecordDict(),
    "message without an array": lambda _: RecordDict({"message": ArrayRecord()}),
    "message without header": lambda content: record(opened(content)[1]),
    "message without a run": lambda content: altered(content, without=["run"]),
    "header no text": raw(b"\xff\xfe"),
    "header broken": raw('{"train.batch": '),
    "header nested without end": raw("[" * 30_000),
    "header a number of 10,000 digits": raw('{"run": ' + "9" * 10_000 + "}"),
    "message with one record more": extra,
    "settings of 10 MB": header(settings={"model.name": "x" * 10_000_000 + MARKER}),
    "settings of a million keys": big_keys,
    "settings a list": header(settings=[1, 2]),
    "settings a number": header(settings=3),
    "settings a text": header(settings="{}"),
    "run a path": header(run="../../elsewhere"),
    "run absolute": header(run="/etc/passwd"),
    "run a folder up": header(run=".."),
    "run empty": header(run=""),
    "run long": header(run=LONG),
    "run with a line break": header(run="run-1\nrefused: nothing"),
    "run in look-alike letters": header(run="run-\u0661"),
    "round negative": header(round=-1),
    "round a truth value": header(round=True),
    "round a fraction": header(round=1.5),
    "round a list": header(round=[1]),
    "round beyond all": header(round=2**40),
    "schema a list": header(schema=[1]),
    "hash of another task": header(task_hash="0" * 64),
    "code in a key": header(code="import os"),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in RECORDS.items()])
def test_hostile_messages_are_refused(
    checked: Place,
    make: Callable[[RecordDict], RecordDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = make(request_to_records(checked.task(2)))
    assert sent(content, context(checked, monkeypatch)) == "wire.malformed"


UNSENDABLE: list[tuple[str, Callable[[], dict[Any, Any]], str]] = [
    ("bytes", lambda: {"train.batch": b"32"}, TYPE),
    ("a key that is a number", lambda: {3: 1}, UNKNOWN),
    ("a set", lambda: {"train.batch": {1}}, TYPE),
    ("10 MB of text", lambda: {"model.name": "x" * 10_000_000 + MARKER}, RANGE),
    ("10 MB of a key", lambda: {"x" * 10_000_000 + MARKER: 1}, UNKNOWN),
    ("a million keys", lambda: {f"k{i}": 0 for i in range(1_000_000)}, UNKNOWN),
]


@pytest.mark.parametrize(
    ("change", "expected"), [pytest.param(c, e, id=name) for name, c, e in UNSENDABLE]
)
def test_what_no_message_can_carry_is_refused_in_process_too(
    checked: Place, change: Callable[[], dict[Any, Any]], expected: str
) -> None:
    task = checked.task(2, settings=checked.settings | change())
    assert in_process(checked, task) == expected


def test_the_honest_task_is_answered_after_all_that(
    fresh: Place, seasoned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last, so that every mutation above went to the same two holders."""
    assert not fresh.site.ledger.exists()
    assert seasoned.states() == ["created", "reserved", "released"]
    where, content = context(seasoned, monkeypatch), request_to_records(seasoned.task(2))
    message = Message(content=content, dst_node_id=1, message_type="train")
    with watching():
        reply = answer(message, where)
    assert isinstance(reply, Update)
    assert str(seasoned.data) in OPENED.names  # the watch sees a text that is read
    assert code(fresh.holder.handle(fresh.task(1))) == "update"


# Mutations that need a past


def head_of(place: Place) -> str:
    with Ledger.open(place.site.ledger, create=False) as ledger:
        return ledger.head


def refused_without_a_trace(place: Place, task: TrainRequest, expected: str) -> None:
    before = head_of(place)
    with watching():
        assert code(place.holder.handle(task)) == expected
    assert str(place.data) not in OPENED.names
    assert head_of(place) == before


NOISE = 4.0


@pytest.fixture
def noisy(tmp_path: Path, tiny_model: Path) -> Place:
    """A holder that has answered a round of a run."""
    place = a_place(
        tmp_path, tiny_model, privacy__noise_multiplier=NOISE, train__rate=0.25, round__count=4
    )
    assert code(place.holder.handle(place.task(1))) == "update"
    return place


def test_a_changed_task_of_a_round_is_another_task_and_the_rounds_are_counted(
    noisy: Place,
) -> None:
    for number in (2, 3, 4):
        assert code(noisy.holder.handle(noisy.task(number))) == "update"
    for number in (1, 4):
        other = noisy.task(number, adapter=bytes(len(noisy.task().adapter)))
        refused_without_a_trace(noisy, other, "task.too-many-rounds")


@pytest.mark.parametrize(
    ("change", "policy", "expected"),
    [
        pytest.param(
            {"privacy.noise-multiplier": 0.5, "train.rate": 1.0},
            {"max_epsilon": 5.0, "max_epsilon_per_run": 100.0},
            "ledger.budget-exhausted",
            id="a round that takes more than is left",
        ),
        pytest.param(
            {"privacy.noise-multiplier": 1.0, "round.count": 150},
            {"max_epsilon": 100.0},
            "policy.max-epsilon-per-run",
            id="a run that plans more than a run may",
        ),
        pytest.param(
            {"train.rate": 0.26},
            {"max_sampling_rate": 0.25},
            "policy.max-sampling-rate",
            id="more of the data than a step may use",
        ),
        pytest.param(
            {"privacy.noise-multiplier": "auto", "privacy.epsilon": 8.0, "train.rate": 0.05},
            {"min_noise_multiplier": 1.0},
            "policy.min-noise-multiplier",
            id="an epsilon that takes too little noise",
        ),
        pytest.param(
            {"privacy.unit": "person", "data.person": "person"}, {}, "contract.unit", id="persons"
        ),
    ],
)
def test_what_the_ledger_knows_decides_before_the_text_is_opened(
    noisy: Place, change: Mapping[str, Any], policy: Mapping[str, Any], expected: str
) -> None:
    noisy.restart(**policy)
    task = noisy.task(2, settings=noisy.settings | change)
    refused_without_a_trace(noisy, task, expected)


def test_the_unit_of_a_ledger_of_persons_cannot_become_the_record(
    tmp_path: Path, tiny_model: Path
) -> None:
    by_person = {"privacy__unit": "person", "data__person": "person"}
    place = a_place(tmp_path, tiny_model, **by_person)
    assert code(place.holder.handle(place.task(1))) == "update"
    for change, what in (
        ({"privacy.unit": "record"}, "unit"),
        ({"data.person": "label"}, "person"),
    ):
        task = place.task(2, settings=place.settings | change)
        refused_without_a_trace(place, task, f"contract.{what}")


def test_other_weights_under_the_listed_name_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    from confide.common.models.loading import weights_sha256

    right = weights_sha256(tiny_model)
    place = a_place(tmp_path, tiny_model)
    place.restart(base_models=(f"{tiny_model}@sha256:{'0' * 64}",))
    with watching():
        assert code(place.holder.handle(place.task(1))) == "policy.base-model-hash"
    assert str(place.data) not in OPENED.names
    assert not place.site.ledger.exists()
    place.restart(base_models=(f"{tiny_model}@sha256:{right}",))
    assert code(place.holder.handle(place.task(1))) == "update"


def test_a_first_task_that_plans_too_much_is_refused_before_the_charge(
    tmp_path: Path, tiny_model: Path
) -> None:
    place = a_place(tmp_path, tiny_model, privacy__noise_multiplier=0.5, round__count=200)
    assert code(place.holder.handle(place.task(1))) == "policy.max-epsilon-per-run"
    tiny.write_jsonl(place.data, tiny.rows(30, seed=9))
    assert code(place.holder.handle(place.task(1))) == "policy.max-epsilon-per-run"
    assert place.charges() == 0
