"""Two texts that differ in one record: nobody sees a difference but through the noisy sum.

For every kind of task, unit and method, and a bank of honest, odd and hostile requests, two holders
with the same insecure generator are watched from all sides (``witness``). Kind of reply, code,
sizes, receipt, entries and files of the ledger and log lines must be equal letter by letter, and
the sums may differ by at most the clip norm before noise is added.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from confide.client.guard.policy import Policy
from confide.common.adapter.encoding import pack
from confide.common.adapter.schema import flatten
from confide.common.errors import ConfideError
from confide.common.masking.keys import Identity, Roster, SealingKey
from confide.common.masking.openers import Opener
from confide.common.methods import method_of
from confide.common.models.loading import load_model
from confide.common.plans import SENSITIVITY
from confide.common.settings import COORDINATORS_OWN, from_flat
from confide.common.wire.messages import NO_ADAPTER, TrainRequest
from tests import tiny
from tests.client.witness import BAD_LINES, Seen, Witness, lines_of

RECORDS = 9  # three persons of three
SLACK = 1 + 1e-6
SMALL = {"privacy.clip": 0.7, "train.batch": 6, "privacy.noise-multiplier": 5.0}
PERSONS = {"privacy.unit": "person", "data.person": "person"}
Make = Callable[..., "Place"]


class Place:
    """A task's model, and what an honest coordinator sends to holders of such text."""

    def __init__(self, folder: Path, model: Path, task: str, **changes: Any) -> None:
        flat = tiny.config(model, Path("f"), Path("o"), **tiny.TASKS[task])
        flat |= SMALL | changes
        self.task_name, self._folder, self._count = task, folder, itertools.count()
        flat.setdefault("aggregate.method", "ffa")
        self.settings = {k: v for k, v in flat.items() if k not in COORDINATORS_OWN}
        contract = dataclasses.replace(
            tiny.contract(flat), tasks=tuple({flat.get("task.kind", "classification")})
        )
        self.policy = Policy(
            max_epsilon=900.0,
            max_epsilon_per_run=900.0,
            max_delta=0.05,
            base_models=(str(model),),
            data=contract,
        )

    def request(self, number: int = 1, **changes: Any) -> TrainRequest:
        """The honest task of a round, with other settings of whatever kind."""
        settings = self.settings | changes
        try:
            loaded = load_model(from_flat(settings))
        except ConfideError:
            loaded = load_model(from_flat(self.settings))
        known = flatten(loaded.initial, loaded.schema.shapes)
        return TrainRequest(
            run="run-1",
            round=number,
            settings=settings,
            schema=method_of(str(settings["aggregate.method"])).sent(loaded.schema).digest,
            sent="1" * len(loaded.schema.shapes),
            rest=pack(loaded.schema, known + 1, loaded.initial).rest,
            adapter=(known + 0.05).numpy().tobytes(),
        )

    def count(self, **changes: Any) -> TrainRequest:
        """A request for the classes, which takes no adapter."""
        settings = self.settings | {"task.class-weights": "counted"} | changes
        return TrainRequest(run="run-1", round=0, settings=settings, **NO_ADAPTER)

    def watch(self, lines: Sequence[bytes], tasks: Sequence[TrainRequest]) -> Seen:
        """What a new holder of these lines shows, asked these tasks one after the other."""
        folder = self._folder / f"{next(self._count)}"
        return Witness(folder, lines, self.policy).answers(tasks)


@pytest.fixture
def make(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    def made(task: str = "classification", **changes: Any) -> Place:
        model = _model(task, tmp_path_factory)
        return Place(tmp_path, model, task, **changes)

    return made


_MODELS: dict[str, Path] = {}


def _model(task: str, factory: pytest.TempPathFactory) -> Path:
    if task not in _MODELS:
        _MODELS[task] = tiny.save_task_model(factory.mktemp(task), task)
    return _MODELS[task]


def assert_alike(one: Seen, other: Seen, what: str, units: int = 1) -> None:
    """Nothing differs but the sums, by what so many units can add or take away."""
    for number, (left, right) in enumerate(zip(one.told, other.told, strict=True)):
        assert left == right, (what, number)
    assert len(one.sums) == len(other.sums), what
    for left, right in zip(one.sums, other.sums, strict=True):
        most = SENSITIVITY if left.size <= 3 else SMALL["privacy.clip"]
        moved = float(np.linalg.norm(left - right))
        assert moved <= units * most * SLACK, what  # not a number is refused, too


def asked(place: Place) -> list[TrainRequest]:
    """A round, and each sum that the task has."""
    kind = place.settings.get("task.kind", "classification")
    scored = {"classification": "accuracy", "multilabel": "accuracy", "regression": ""}.get(
        kind, "perplexity"
    )
    tasks = [place.request()]
    if kind == "classification":
        tasks.append(place.count())
    if scored:
        tasks.append(place.request(3, **{"round.holder-metric": scored}))
    return tasks


# Every bad kind of record, for every kind of task and unit


@pytest.mark.parametrize("unit", [{}, PERSONS], ids=["records", "persons"])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_bad_record_is_not_seen(make: Make, task: str, unit: dict[str, Any]) -> None:
    place = make(task, **unit)
    tasks, lines = asked(place), lines_of(task, RECORDS)
    whole, shorter = place.watch(lines, tasks), place.watch(lines[:-1], tasks)
    assert [told[0] for told in whole.told[::4]] == ["update"] * len(tasks)
    for name, bad in BAD_LINES.items():
        seen = place.watch([*lines[:-1], bad], tasks)
        # Replaced is one taken away and one added. A bad record may still name a person: then that
        # person is another one, which is twice one unit, too.
        assert_alike(whole, seen, f"{name} in the place of a good one", units=2)
        assert_alike(shorter, seen, f"{name} added", units=2 if unit else 1)
    if unit:  # the last person, who has three
        assert_alike(whole, place.watch(lines[:-3], tasks), "a person less")
    assert whole.sums[0].any()


# Every method, mode and encoding that a holder trains by

LOCAL = {"round.mode": "steps", "train.steps": 1, "train.lr": 0.5}
WAYS: Mapping[str, dict[str, Any]] = {
    "ffa": {},
    "lora": {"aggregate.method": "lora"},
    "ffb": {"aggregate.method": "ffb"},
    "fedsvd": {"aggregate.method": "fedsvd"},
    "hetlora": {"aggregate.method": "hetlora"},
    "flexlora": {"aggregate.method": "flexlora"},
    "rolora": {"aggregate.method": "rolora"},
    "fedsa": {"aggregate.method": "fedsa", **LOCAL},
    "head": {"lora.method": "head"},
    "steps": LOCAL,
    "adam": LOCAL | {"train.optimizer": "adam"},
    "int4": {"wire.encoding": "int4"},
    "sampled": {"train.rate": 0.5},
    "weighted": {"task.class-weights": "0.5,2"},
    "thinned": {"task.class-rates": "0.5,0.9"},
    "copied": {"task.word-dropout": 0.3, "task.copies": 3},
    "focal": {"task.loss": "focal"},
    "epsilon": {"privacy.noise-multiplier": "auto", "privacy.epsilon": 3.0},
    "every layer": {"lora.layers": 0},
    "one record at a time": {"train.memory": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_training_shows_a_record(make: Make, way: str) -> None:
    place = make()
    lines = lines_of("classification", RECORDS)
    tasks = [place.request(1, **WAYS[way])]
    whole = place.watch(lines, tasks)
    assert whole.told[0][0] == "update"
    for number, other in enumerate((lines[:-1], [*lines, lines[0]])):
        assert_alike(whole, place.watch(other, tasks), f"{way}, {number}")
    for name in ("another label", "one long word"):
        other = [*lines[:-1], BAD_LINES[name]]
        assert_alike(whole, place.watch(other, tasks), f"{way}, {name}", units=2)


SHARED = {"privacy.trust": "distributed", "round.min-holders": 3, "privacy.colluding": 1}
BEHIND_MASKS: Mapping[str, dict[str, Any]] = {
    "ffa": {},
    "head": {"lora.method": "head"},
    "sampled": {"train.rate": 0.5},
    "persons": PERSONS,
    "epsilon": {"privacy.noise-multiplier": "auto", "privacy.epsilon": 3.0},
    "holder": {"privacy.unit": "holder", "round.mode": "steps", "train.steps": 2},
    "holder's bit": {
        "privacy.unit": "holder",
        "round.mode": "steps",
        "train.steps": 2,
        "privacy.clip-quantile": 0.5,
    },
}


@pytest.mark.parametrize("way", BEHIND_MASKS)
def test_behind_masks_no_record_shows_either(make: Make, tmp_path: Path, way: str) -> None:
    """Nor in the card of who only asks, in sealed seeds, or in the files of keys."""
    changes = SHARED | BEHIND_MASKS[way]
    place = make(**changes)
    policy = dataclasses.replace(
        place.policy, allow_any_roster=True, max_epsilon_unmasked=1e6, min_contributions=2
    )
    secrets = [Identity.new_secret() for _ in range(4)]
    members = [Identity(f"holder-{i:02d}", secret) for i, secret in enumerate(secrets)]
    keys = [SealingKey(SealingKey.new_secret()) for _ in range(2)]
    openers = [Opener.of(m, "run-1", k) for m, k in zip(members[1:], keys, strict=False)]
    sent = {
        "roster": Roster([m.member for m in members]).to_bytes(),
        "openers": b"".join(one.to_bytes() for one in openers),
    }
    asked = [dataclasses.replace(place.request(1), dry=True), place.request(1)]
    if way in ("ffa", "persons"):
        asked = [*asked, place.count(**changes)]
    tasks = [dataclasses.replace(task, **sent) for task in asked]

    def watch(lines: Sequence[bytes], name: str) -> Seen:
        return Witness(tmp_path / name, lines, policy, secrets[0]).answers(tasks)

    lines = lines_of("classification", RECORDS)
    whole = watch(lines, "whole")
    kinds = [told[0] for told in whole.told[::4]]
    assert kinds == ["ready", *["update"] * (len(tasks) - 1)]
    others = {"fewer": lines[:-1], "more": [*lines, lines[0]]}
    others |= {name: [*lines[:-1], BAD_LINES[name]] for name in ("a null", "one long word")}
    for name, other in others.items():
        seen = watch(other, name)
        if way.startswith("holder"):  # clipped as a whole, after the sums that are watched
            assert seen.told == whole.told, name
        else:
            assert_alike(whole, seen, f"{way}, {name}", units=2)


def test_dropout_of_adapters_shows_no_record(make: Make) -> None:
    """One mask for all records of a batch: with 64 of them sums differed by four times C."""
    changes = {"lora.dropout": 0.5, "lora.layers": 0, "lora.rank": 8, "privacy.clip": 1e-3}
    place, lines = make(), lines_of("classification", 65)
    tasks = [place.request(1, **changes)]
    whole, other = place.watch(lines, tasks), place.watch(lines[:-1], tasks)
    assert whole.told == other.told
    assert all(
        np.linalg.norm(one - two) <= changes["privacy.clip"] * SLACK
        for one, two in zip(whole.sums, other.sums, strict=True)
    )


# A bank of requests: honest, odd and hostile

_SCALE = {"task.kind": "regression", "task.labels": ""}
BANK: list[dict[str, Any]] = [
    {},
    *({"data.target": column} for column in ("", "person", "note", "diagnosis", "text")),
    *({"data.text": column} for column in ("label", "person", "note", "a")),
    *({"data.person": column} for column in ("person", "label", "text", "note")),
    *(PERSONS | {"data.person": column} for column in ("person", "label", "text", "note")),
    *(PERSONS | {"privacy.noise-multiplier": 10_000.0, "train.rate": rate} for rate in (0.1, 1.0)),
    *({"task.labels": labels} for labels in (
        "negative,other", "positive,other", "positive,negative", "negative,positive,mixed",
        "Negative,Positive", "a,b", "unheard of,positive", "positive,,negative",
    )),
    *(_SCALE | {"task.high": 2.0**-k, "privacy.noise-multiplier": 10_000.0} for k in range(12)),
    *(_SCALE | {"data.target": column} for column in ("label", "person", "text", "note")),
    *({"task.kind": kind, "task.labels": ""} for kind in (
        "causal", "masked", "spans", "seq2seq", "regression",
    )),
    *({"task.kind": kind, "task.labels": "", "data.target": ""} for kind in (
        "causal", "masked", "spans",
    )),
    {"task.kind": "causal", "task.labels": "", "task.template": "chat"},
    {"task.kind": "causal", "task.labels": "", "task.template": "{text}" * 1666},
    *({"train.rate": rate} for rate in (1e-9, 0.01, 0.5, 0.999, 1.0)),
    *({"train.batch": batch} for batch in (1, RECORDS - 1, RECORDS, RECORDS + 1, 10_000)),
    *({"privacy.delta": 1 / n} for n in (RECORDS - 1, RECORDS, RECORDS + 1, 20, 10**6)),
    *({"privacy.noise-multiplier": z} for z in (0.1, 0.4, 1.0, 10_000.0)),
    *({"privacy.noise-multiplier": "auto", "privacy.epsilon": e} for e in (0.01, 1.0, 8.0, 100.0)),
    *({"privacy.clip": clip} for clip in (1e-6, 0.1, 0.7)),
    {"privacy.trust": "off", "privacy.noise-multiplier": "auto"},
    *({"train.max-length": length} for length in (8, 9, 32, 64, 65, 8192)),
    *({"train.memory": memory} for memory in (1, 2, 1_000_000)),
    *({"train.steps": steps, "round.mode": "steps"} for steps in (1, 2, 20)),
    *({"round.count": count} for count in (1, 2, 200, 100_000)),
    *({"lora.dropout": p} for p in (0.1, 0.9)),
    *({"task.word-dropout": 0.2, "task.copies": copies} for copies in (1, 2, 8, 64)),
    *({"task.class-weights": text} for text in ("counted", "1,2", "0,1", "counted 1,2")),
    *({"task.class-rates": text} for text in ("counted", "0.5,0.5", "1e-9,1")),
    *({"model.dtype": dtype} for dtype in ("auto", "bfloat16", "float64")),
    *({"model.name": name} for name in ("/etc", "no/such", "")),
    *({"lora.targets": names} for names in ("query", "word_embeddings", "nothing")),
    *({"lora.rank": rank} for rank in (1, 3, 256)),
    *({"wire.encoding": encoding} for encoding in ("bf16", "int8", "int4", "pickle")),
    *({"aggregate.method": method} for method in ("fedex", "flora", "rolora", "fedsa")),
    *({"data.benchmark": name} for name in ("glue/sst2", "glue/none")),
    *({"privacy.records-per-person": n} for n in (1, 2, 1_000_000)),
    *({"data.path": path} for path in ("/etc/passwd", "x")),
    {"train.rate": 0.0}, {"train.rate": 2.0}, {"train.rate": "1"}, {"nothing": 1},
    {"task.kind": "multilabel"}, {"task.kind": "multilabel", "task.class-weights": "counted"},
]  # fmt: skip
NUMBERS = (0, 1, 2, 3, -1)
PICKED = ("another label", "a missing column", "one long word", "not a number")


def test_the_bank_has_a_hundred_requests() -> None:
    assert len({repr(changes) for changes in BANK}) == len(BANK) >= 100


@pytest.mark.parametrize("part", range(4))
def test_no_request_of_the_bank_shows_a_record(make: Make, part: int) -> None:
    place = make()
    lines = lines_of("classification", RECORDS)
    texts = [lines, lines[:-1], *([*lines[:-1], BAD_LINES[name]] for name in PICKED)]
    codes: set[str] = set()
    for changes in BANK[part::4]:
        tasks = [place.request(1, **changes)]
        seen = [place.watch(text, tasks) for text in texts]
        for other in seen[1:]:
            assert_alike(seen[0], other, repr(changes)[:80], units=2)
        kind, ledger = seen[0].told[0][0], seen[0].told[2]
        assert kind == "update" or ledger == ("no ledger", []), changes  # a refusal leaves nothing
        codes.add(kind)
    assert codes == {"update", "refusal"}


@pytest.mark.parametrize("part", range(2))
def test_who_only_asks_sees_no_record_leaves_nothing_and_is_told_what_a_task_would_be(
    make: Make, part: int
) -> None:
    place = make()
    lines = lines_of("classification", RECORDS)
    other = [*lines[:-1], BAD_LINES["another label"]]
    for changes in BANK[part::4]:
        asked = place.request(1, **changes)
        tasks = [dataclasses.replace(asked, dry=True), asked]
        seen, others = place.watch(lines, tasks), place.watch(other, tasks)
        assert_alike(seen, others, repr(changes)[:80], units=2)
        (said, *_), _, left, sums = seen.told[:4]
        assert (left, sums) == (("no ledger", []), 0), "who only asks leaves nothing"
        assert (said == "ready") == (seen.told[4][0] == "update"), changes


def test_no_row_of_requests_shows_a_record_or_its_past(make: Make) -> None:
    """One holder, asked much: what was asked before, and a text that changed, must not show."""
    place = make()
    tasks = [place.request(number, **BANK[i]) for number, i in zip(
        itertools.cycle(NUMBERS), range(0, len(BANK), 5), strict=False)]  # fmt: skip
    binding = PERSONS | {"privacy.noise-multiplier": 10_000.0}
    tasks = [place.request(1, **binding), *tasks, place.count(), place.request(2)]
    tasks.append(dataclasses.replace(place.request(1), run="an honest run"))
    lines = lines_of("classification", RECORDS)
    whole = place.watch(lines, tasks)
    assert whole.told[-4][0] == "update", "whatever was asked before, it is answered"
    for name in PICKED:
        assert_alike(whole, place.watch([*lines[:-1], BAD_LINES[name]], tasks), name, units=2)
