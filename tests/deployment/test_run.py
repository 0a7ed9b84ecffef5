"""A run over a federation, watched: what is shown, what ends it, and what it survives.

Flower is played by ``Fake``: each run of its is a list of steps that write what a ServerApp would.
"""

from __future__ import annotations

import json
import shutil
import socket
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import Settings, from_flat
from confide.common.wire.messages import NO_ADAPTER, TrainRequest
from confide.server.deploy import door, flower, members
from confide.server.deploy import run as module
from confide.server.deploy.federation import Federation, Holder
from confide.server.deploy.run import run_over
from confide.server.run_folder import DONE, TRAINING, RunFolder, live_file

NAMES = {11: "north", 22: "south"}
Step = Callable[["Fake"], None]


class Fake:
    """Flower: one step of the newest run each time it is asked for its runs."""

    def __init__(self, parts: list[list[Step]]) -> None:
        self.parts, self.configs = parts, list[Mapping[str, Any]]()
        self.statuses: dict[int, str] = {}
        self.online = set(NAMES)
        self.stopped: list[int] = []
        self.folder: RunFolder | None = None

    def start_run(self, federation: Federation, path: Path) -> int:
        rooms = tomllib.loads(path.read_text(encoding="utf-8"))
        self.configs.append({f"{r}.{k}": v for r, row in rooms.items() for k, v in row.items()})
        number = len(self.configs)
        self.statuses[number] = "running"
        return number

    def runs(self, federation: Federation) -> list[flower.FlowerRun]:
        number = len(self.configs)
        if number and self.statuses[number] == "running":
            steps = self.parts[number - 1]
            if steps:
                steps.pop(0)(self)
            else:
                self.statuses[number] = "finished:completed"
        return [flower.FlowerRun(id=n, status=s, bundle="") for n, s in self.statuses.items()]

    def nodes(self, federation: Federation) -> list[flower.Node]:
        return [
            flower.Node(id=node, status="online" if node in self.online else "offline")
            for node in NAMES
        ]

    def stop_run(self, federation: Federation, run: int) -> None:
        self.stopped.append(run)

    # What a ServerApp does.
    def begin(self) -> None:
        config = self.configs[-1]
        self.folder = RunFolder.named(str(config["run.out"]), str(config["run.id"]))
        self.folder.write_config({**config, "run.id": ""})
        self.folder.event("start", run=self.folder.id, command=config["run.id"])

    def go_on(self) -> None:
        config = self.configs[-1]
        self.folder = RunFolder.reopen(from_flat(config))
        self.folder.event("resume", command=config["run.id"])

    def round(self, number: int) -> None:
        assert self.folder is not None
        self.folder.event("round", round=number, accepted=[], left_out=[])
        self.folder.write("checkpoint/state.json", b"{}")

    def live(self, number: int, states: dict[int, str]) -> None:
        assert self.folder is not None
        task = TrainRequest(run=self.folder.id, round=number, settings={}, **NO_ADAPTER)
        live_file(self.configs[-1])(task, states)

    def end(self, status: str = "finished", code: str = "", message: str = "") -> None:
        assert self.folder is not None
        command = self.configs[-1]["run.id"]
        self.folder.event("end", command=command, status=status, code=code, message=message)
        if status == "finished":
            self.folder.write("report.json", b"{}")


def begin(fake: Fake) -> None:
    fake.begin()


def go_on(fake: Fake) -> None:
    fake.go_on()


def rounds(number: int) -> Step:
    return lambda fake: fake.round(number)


def live(number: int, states: dict[int, str]) -> Step:
    return lambda fake: fake.live(number, states)


def end(*args: str) -> Step:
    return lambda fake: fake.end(*args)


def die(fake: Fake) -> None:
    """Killed: no last word, and Flower calls the run failed."""
    fake.statuses[len(fake.configs)] = "finished:failed"


def is_stopped(fake: Fake) -> None:
    fake.end("stopped", "run.stopped")
    fake.statuses[len(fake.configs)] = "finished:stopped"


def down(fake: Fake) -> None:
    raise ConfideError("server.down", "Nobody answers.")


def interrupt(fake: Fake) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    holders = {n: Holder(name=n, key="0" * 64, expires=date.max) for n in NAMES.values()}
    return Federation(
        folder=tmp_path / "fed",
        host="localhost",
        port=1,
        superlink_port=2,
        bundle="0" * 64,
        holders=holders,
    )


@pytest.fixture
def play(
    fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Fake, Callable[..., Path], list[dict[str, Any]]]]:
    """``play(steps, ...)``: a fake, the call, and the list of what was shown."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "public.jsonl").write_text("{}\n")
    (tmp_path / "text" / "federation.json").write_text('{"holders": 50}')
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(module, "check_bundle", lambda *_: None)
    monkeypatch.setattr(module, "names", lambda _: NAMES)
    monkeypatch.setattr(members, "names", lambda _: NAMES)

    def start(*parts: list[Step]) -> tuple[Fake, Callable[..., Path], list[dict[str, Any]]]:
        fake, shown = Fake(list(parts)), list[dict[str, Any]]()
        for name in ("start_run", "runs", "nodes", "stop_run"):
            monkeypatch.setattr(flower, name, getattr(fake, name))
        config = {
            **Settings().to_flat(),
            "model.name": "m",
            "task.labels": "no,yes",
            "data.path": str(tmp_path / "text"),
            "run.out": str(tmp_path / "runs"),
        }

        def call(**changes: Any) -> Path:
            named = {key.replace("__", "."): value for key, value in changes.items()}
            return run_over(fed, {**config, **named}, shown.append, wait=0.0)

        return fake, call, shown

    return start


def kinds(shown: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in shown if event["event"] != "holders"]


def test_a_run_comes_home_and_every_event_was_shown_once(play: Any) -> None:
    fake, call, shown = play([begin, rounds(1), rounds(2), end()])
    folder = call()
    assert folder == fake.folder.path
    assert kinds(shown) == ["start", "round", "round", "end"]


def test_the_coordinators_text_is_named_without_the_number_of_simulated_holders(
    play: Any, tmp_path: Path
) -> None:
    fake, call, _ = play([begin, end()])
    call()
    given = Path(fake.configs[0]["data.path"])
    assert [path.name for path in given.iterdir()] == ["public.jsonl"]
    assert (given / "public.jsonl").read_text() == "{}\n"


def test_each_holder_is_shown_as_away_connected_training_done_or_refusing_with_its_code(
    play: Any,
) -> None:
    def leave(fake: Fake) -> None:
        fake.online.discard(22)

    _, call, shown = play(
        [
            begin,
            live(1, {11: TRAINING, 22: TRAINING}),
            live(1, {11: DONE, 22: "policy.max-epsilon"}),
            live(2, {11: TRAINING}),
            leave,
            end(),
        ]
    )
    call()
    states = [tuple(e["states"][n] for n in ("north", "south")) for e in shown if "states" in e]
    assert states == [
        ("connected", "connected"),
        ("training", "training"),
        ("done", "policy.max-epsilon"),
        ("training", "connected"),
        ("training", "away"),
    ]


def test_a_run_that_died_goes_on_from_its_checkpoint_in_the_same_folder(
    play: Any, fed: Federation
) -> None:
    fake, call, shown = play([begin, rounds(1), die], [go_on, rounds(2), end()])
    folder = call()
    assert fake.configs[0]["run.resume"] == ""
    assert fake.configs[1]["run.resume"] == str(folder)
    assert kinds(shown) == ["start", "round", "again", "resume", "round", "end"]
    noted = json.loads((fed.folder / "flower" / "runs.json").read_text())
    assert noted == {str(folder): {"run": 2, "command": fake.configs[1]["run.id"]}}


def test_a_run_folder_of_somebody_elses_names_no_run_of_flowers(play: Any, tmp_path: Path) -> None:
    """It would be followed, and ended with Ctrl-C."""
    fake, call, _ = play([begin, rounds(1), end()], [go_on, end()])
    foreign = shutil.copytree(call(), tmp_path / "runs" / "foreign")
    (foreign / "flower.json").write_text('{"run": 1}')
    fake.statuses[1] = "running"
    assert call(run__resume=str(foreign)) == foreign
    assert len(fake.configs) == 2


def test_events_that_no_run_wrote_are_told_as_damage(play: Any) -> None:
    _, call, _ = play([begin, rounds(1), end()])
    folder = call()
    for line in ("[1]", "{}", '{"event": 1}', '{"event": "round"}', '{"event": "end"}', "[" * 9999):
        (folder / "metrics.jsonl").write_text(line + "\n")
        with pytest.raises(ConfideError) as caught:
            call(run__resume=str(folder))
        assert caught.value.code == "run.metrics"


def test_a_run_whose_coordinator_failed_in_mid_round_goes_on_too(play: Any) -> None:
    crash = end("failed", "run.failed")
    fake, call, _ = play([begin, rounds(1), crash], [go_on, rounds(2), end()])
    call()
    assert len(fake.configs) == 2


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(play: Any) -> None:
    fake, call, _ = play([begin, die], [begin, end()])
    assert call() == fake.folder.path
    assert fake.configs[1]["run.resume"] == ""


def test_a_run_killed_between_its_end_and_its_report_is_finished(play: Any) -> None:
    def no_report(fake: Fake) -> None:
        command = fake.configs[-1]["run.id"]
        fake.folder.event("end", command=command, status="finished", code="")  # type: ignore[union-attr]

    fake, call, _ = play([begin, rounds(1), no_report, die], [go_on, end()])
    assert (call() / "report.json").is_file()
    assert len(fake.configs) == 2


def test_a_run_that_dies_again_and_again_is_given_up(play: Any) -> None:
    fake, call, _ = play(*([die] for _ in range(9)))
    with pytest.raises(ConfideError) as caught:
        call()
    assert caught.value.code == "run.failed"
    assert len(fake.configs) == 4


def test_rounds_between_deaths_are_progress(play: Any) -> None:
    parts = [[begin, rounds(1), die], *([go_on, rounds(n), die] for n in range(2, 8))]
    _, call, _ = play(*parts, [go_on, end()])
    assert call().is_dir()


def test_what_the_run_itself_says_of_its_failure_is_final(play: Any) -> None:
    said = end("failed", "run.no-round", "[run.no-round] None of 3 rounds.")
    fake, call, _ = play([begin, rounds(1), said])
    with pytest.raises(ConfideError) as caught:
        call()
    assert (caught.value.code, caught.value.message) == ("run.no-round", "None of 3 rounds.")
    assert str(fake.folder.path) in caught.value.hint


def test_a_coordinator_that_is_being_restarted_is_waited_for(play: Any) -> None:
    _, call, shown = play([begin, down, down, rounds(1), end()])
    call()
    assert kinds(shown) == ["start", "away", "away", "round", "end"]


def test_a_run_that_somebody_stopped_does_not_go_on(play: Any) -> None:
    fake, call, _ = play([begin, rounds(1), is_stopped])
    with pytest.raises(ConfideError) as caught:
        call()
    assert caught.value.code == "run.stopped"
    assert len(fake.configs) == 1


def test_ctrl_c_stops_the_run_itself(play: Any) -> None:
    fake, call, _ = play([begin, interrupt])
    with pytest.raises(KeyboardInterrupt):
        call()
    assert fake.stopped == [1]


def test_the_folder_of_a_run_under_way_is_watched_and_not_started_again(play: Any) -> None:
    fake, call, shown = play([begin, rounds(1), end()])
    first = []

    def leave(fake: Fake) -> None:
        first.append(fake.folder.path)  # type: ignore[union-attr]
        raise ConfideError("server.flower", "the watcher is gone")

    fake.parts[0].insert(2, leave)
    with pytest.raises(ConfideError):
        call()
    assert call(run__resume=str(first[0])) == first[0]
    assert len(fake.configs) == 1
    assert kinds(shown) == ["start", "round", "end"]


def test_too_few_holders_are_told_before_anything_starts(play: Any) -> None:
    fake, call, _ = play([])
    fake.online = {11}
    with pytest.raises(ConfideError) as caught:
        call()
    assert caught.value.code == "run.too-few-holders"
    assert fake.configs == []


def test_without_public_text_nothing_starts(play: Any, tmp_path: Path) -> None:
    fake, call, _ = play([])
    with pytest.raises(ConfideError) as caught:
        call(data__path=str(tmp_path))
    assert caught.value.code == "data.missing-file"
    assert fake.configs == []


# --- what died has last words ---


def test_a_run_that_always_dies_ends_with_the_last_words_of_what_it_ran_in(
    play: Any, fed: Federation
) -> None:
    fed.logs.mkdir(parents=True)
    log = fed.logs / "superexec.log"
    log.write_text("error of another run\n")

    def die_loudly(fake: Fake) -> None:
        with log.open("a") as said:
            said.write("\u2502 ImportError: No module named x \u2502\n\u2570\u2500\u2500\u256f\n")
        die(fake)

    _, call, _ = play(*([die_loudly] for _ in range(4)))
    with pytest.raises(ConfideError) as caught:
        call()
    assert caught.value.message.endswith(": ImportError: No module named x")
    broken = end("failed", "run.failed", "IndexError")
    for last, said in ((die, "It said nothing."), (broken, "IndexError")):
        _, call, _ = play(*([begin, last] for _ in range(4)))
        with pytest.raises(ConfideError) as caught:
            call()
        assert caught.value.message.endswith(f": {said}"), "not what was there before"


# --- the door listens on what there is (docker-nginx-unprivileged#35) ---


@pytest.mark.parametrize(
    ("there", "listens"),
    [
        ({socket.AF_INET, socket.AF_INET6}, ["*:1", "[::]:1"]),
        ({socket.AF_INET}, ["*:1"]),
        ({socket.AF_INET6}, ["[::]:1"]),
    ],
)
def test_the_door_listens_on_the_protocols_that_the_machine_has(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, there: set[int], listens: list[str]
) -> None:
    monkeypatch.setattr(door, "_is_there", lambda family, _: family in there)
    lines = door.configuration(fed).splitlines()
    found = [line.split()[1] for line in lines if line.split()[:1] == ["listen"]]
    assert found == listens


def test_a_protocol_is_there_if_it_can_be_bound() -> None:
    assert door._is_there(socket.AF_INET, "127.0.0.1")
    assert not door._is_there(socket.AF_INET, "203.0.113.7"), "an address of another machine"


# --- a run is another's only by its name (hydra#2925) ---


def test_two_runs_begun_at_once_in_one_folder_each_tell_their_own_outcome(play: Any) -> None:
    def stranger(fake: Fake) -> None:
        """Somebody else's run appears in the same folder, with a later name, and fails."""
        other = RunFolder.create(str(fake.configs[-1]["run.out"]), "zz-later")
        other.event("start", run=other.id, command="")
        other.event("end", command="", status="failed", code="run.no-round", message="theirs")

    fake, call, shown = play([stranger, begin, rounds(1), end()])
    assert call() == fake.folder.path
    assert kinds(shown) == ["start", "round", "end"]


def test_the_end_of_an_earlier_part_is_not_that_of_a_resumed_one(play: Any) -> None:
    """A resume that fails at once leaves the folder as it was: an old run's figures, no new end."""
    fake, call, shown = play([begin, rounds(1), end()], [die], [die], [die], [die])
    folder = call()
    shown.clear()
    with pytest.raises(ConfideError) as caught:
        call(run__resume=str(folder))
    assert caught.value.code == "run.failed"
    assert kinds(shown) == ["again"] * 3
    assert len(fake.configs) == 5


def test_a_resume_with_other_settings_is_refused_by_name_before_anything_starts(play: Any) -> None:
    fake, call, _ = play([begin, rounds(1), end()])
    folder = call()
    with pytest.raises(ConfideError, match=r"train\.lr = 0\.5") as caught:
        call(run__resume=str(folder), train__lr=0.5)
    assert caught.value.code == "run.resume"
    assert len(fake.configs) == 1


def test_two_starts_at_once_do_not_read_each_others_run_config(
    play: Any, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, call, _ = play([begin, end()], [begin, end()])
    paths = []
    started = flower.start_run

    def start_run(federation: Federation, path: Path) -> int:
        paths.append(path)
        return started(federation, path)

    monkeypatch.setattr(flower, "start_run", start_run)
    call()
    call()
    assert len(set(paths)) == 2
    assert not any(path.exists() for path in paths)
