"""The run folder: what is in it, and what the user hears when the disk does not play along."""

from __future__ import annotations

import errno
import json
import os
import re
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from confide.common.errors import ConfideError
from confide.common.settings import Settings, from_flat
from confide.server import run_folder
from confide.server.run_folder import RunFolder, part_of, run_settings
from tests import tiny

ODD_NAMES = ["plain", "\x00", "", *tiny.ODD_WORDS]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(str(tmp_path / "runs"), "test")


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_folder_is_named_by_time_and_name(tmp_path: Path) -> None:
    made = RunFolder.create(str(tmp_path / "a" / "b"), "my run/../x")
    assert made.path.parent == tmp_path / "a" / "b"
    assert re.fullmatch(r"\d{8}-\d{6}-my-run-..-x", made.id)
    assert made.path.is_dir()


@pytest.mark.parametrize("name", ["", "...", "///", "-"])
def test_a_name_without_a_letter_is_run(tmp_path: Path, name: str) -> None:
    assert RunFolder.create(str(tmp_path), name).id.endswith("-run")


def test_runs_of_the_same_second_do_not_share_a_folder(tmp_path: Path) -> None:
    made = [RunFolder.create(str(tmp_path), "x") for _ in range(5)]
    assert len({one.path for one in made}) == 5


def test_where_no_folder_can_be_made_the_path_and_the_way_out_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfideError, match=r"run\.folder.*file.*Set run\.out") as caught:
            RunFolder.create(str(out), "x")
        assert caught.value.__suppress_context__
    assert (tmp_path / "file").read_text() == "here first"


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (errno.ENOSPC, "disk.full", "full"),
        (errno.EDQUOT, "disk.full", "full"),
        (errno.EACCES, "run.folder", "Permission denied"),
        (errno.EROFS, "run.folder", "Read-only"),
    ],
)
def test_a_disk_that_refuses_is_one_sentence(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int, code: str, word: str
) -> None:
    folder.write("kept", b"before")
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "fsync", failing(number))
        with pytest.raises(ConfideError, match=word) as caught:
            folder.write("kept", b"after")
    assert caught.value.code == code
    assert caught.value.hint
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "write", failing(number))
        with pytest.raises(ConfideError) as caught:
            folder.event("round", round=1)
    assert caught.value.code == code
    assert (folder.path / "kept").read_bytes() == b"before"
    assert sorted(p.name for p in folder.path.iterdir()) == ["kept", "metrics.jsonl"]


def test_a_disk_that_fills_up_within_a_line_leaves_no_half_line(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.event("start", run="r")
    real, calls = os.write, []

    def half(handle: int, data: Any) -> int:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return real(handle, bytes(data)[:5])

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "write", half)
        with pytest.raises(ConfideError, match=r"disk\.full"):
            folder.event("round", round=1)
    folder.event("end", status="failed")
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "end"]


def test_events_are_lines_in_order(folder: RunFolder) -> None:
    for number in range(3):
        folder.event("round", round=number, text="a\nb")
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]


def test_a_resumed_run_does_not_write_behind_half_a_line(folder: RunFolder) -> None:
    folder.event("start", run="r")
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "rou')
    with folder.held():
        folder.event("resume")
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "resume"]


def resumed(path: Path, **changes: Any) -> Settings:
    flat = tiny.config(Path("m"), Path("d"), Path("o"), run__resume=str(path), **changes)
    return from_flat(flat)


def test_what_is_not_a_run_cannot_be_reopened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfideError, match=r"run\.resume"):
            RunFolder.reopen(resumed(path))


def test_a_run_goes_on_with_its_own_settings_alone(folder: RunFolder) -> None:
    folder.write("checkpoint/state.safetensors", b"")
    folder.write_config(resumed(folder.path).to_flat())
    again = resumed(folder.path, run__id="another-command", run__name="another")
    assert RunFolder.reopen(again).path == folder.path
    with pytest.raises(ConfideError, match=r"train\.lr = 9\.0") as caught:
        RunFolder.reopen(resumed(folder.path, train__lr=9.0))
    assert caught.value.code == "run.resume"


def test_a_run_is_written_by_one_process_at_a_time(folder: RunFolder) -> None:
    with folder.held():
        with pytest.raises(ConfideError) as caught, RunFolder(folder.path).held():
            pass
        assert caught.value.code == "run.busy"
    with folder.held():
        assert list(folder.path.iterdir()) == [], "the lock leaves no file"


def test_a_run_that_was_named_before_begins_in_the_folder_of_that_name_once(
    folder: RunFolder,
) -> None:
    out = str(folder.path.parent)
    assert RunFolder.named(out, folder.id).path == folder.path
    assert RunFolder.named(out, "not-there-yet").path.is_dir()
    folder.event("start", run=folder.id)
    for name in (folder.id, "../elsewhere", "", "a/b", ".hidden", "x\n"):
        with pytest.raises(ConfideError) as caught:
            RunFolder.named(out, name)
        assert caught.value.code == "run.id"


def test_the_names_of_two_places_in_two_time_zones_sort_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OasisLMF#1936: a run begun later, further west, had the smaller name."""
    names = []
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        names.append(RunFolder.create(str(tmp_path), "x").id[: len("20260101-000000")])
    monkeypatch.undo()
    time.tzset()
    one, two = (datetime.strptime(n, "%Y%m%d-%H%M%S").replace(tzinfo=UTC) for n in names)
    assert abs((two - one).total_seconds()) < 60
    assert abs((datetime.now(UTC) - one).total_seconds()) < 60


EVENTS = [
    {"event": "start", "command": "one"},
    {"event": "round", "round": 1},
    {"event": "end", "command": "one", "status": "finished"},
    {"event": "resume", "command": "two"},
    {"event": "round", "round": 2},
    {"event": "end", "command": "three", "status": "failed"},
]


def test_an_event_counts_for_the_command_that_it_was_written_for() -> None:
    assert part_of(EVENTS, "one") == EVENTS[:3]
    assert part_of(EVENTS, "two") == EVENTS[3:5]
    assert part_of(EVENTS, "three") == EVENTS[5:]
    assert part_of(EVENTS, "four") == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_config_toml_gives_back_the_settings(folder: RunFolder, name: str) -> None:
    flat = tiny.config(Path("m"), Path("d"), Path("o"), run__name=name, data__text=name or "t")
    settings = from_flat(flat)
    folder.write_config(settings.to_flat())
    tables = tomllib.loads((folder.path / "config.toml").read_text(encoding="utf-8"))
    assert from_flat({f"{t}.{k}": v for t, rows in tables.items() for k, v in rows.items()}) == (
        settings
    )
    assert run_settings(folder.path) == settings


@pytest.mark.parametrize("number", [1e-05, 1e-16, 0.1, 1e4, 3.0])
def test_numbers_in_config_toml_are_exact(folder: RunFolder, number: float) -> None:
    flat = tiny.config(Path("m"), Path("d"), Path("o"), train__lr=number)
    folder.write_config(from_flat(flat).to_flat())
    assert run_settings(folder.path).train.lr == number


@pytest.mark.parametrize("text", [b"[run", b"\xff", b"run = 3\n"])
def test_a_config_that_is_none_is_named(folder: RunFolder, text: bytes) -> None:
    folder.write("config.toml", text)
    with pytest.raises(ConfideError, match=r"run\.config"):
        run_settings(folder.path)


def test_a_folder_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"run\.missing"):
        run_settings(tmp_path)
