"""Who has answered so far: the file that is watched, and the transport that writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from confide.common.wire.messages import NO_ADAPTER, TrainRequest
from confide.server.run_folder import DONE, TRAINING, live_file, read_live

TASK = TrainRequest(run="20260101-000000-it", round=4, settings={}, **NO_ADAPTER)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / TASK.run).mkdir()
    states = {11: TRAINING, 22: DONE, 33: "policy.max-epsilon"}
    live_file({"run.out": str(tmp_path)})(TASK, states)
    assert read_live(tmp_path / TASK.run) == (4, states)


def test_a_resumed_run_is_watched_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere" / TASK.run
    folder.mkdir(parents=True)
    live_file({"run.out": "nowhere", "run.resume": str(folder)})(TASK, {11: DONE})
    assert read_live(folder) == (4, {11: DONE})


def test_before_the_first_round_there_is_nothing(tmp_path: Path) -> None:
    assert read_live(tmp_path) == (0, {})
    (tmp_path / "live.json").write_text("torn")
    assert read_live(tmp_path) == (0, {})


def test_a_disk_that_refuses_does_not_end_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / TASK.run).mkdir()
    monkeypatch.setattr("confide.server.run_folder.os.fsync", full)
    live_file({"run.out": str(tmp_path)})(TASK, {11: DONE})
    assert read_live(tmp_path / TASK.run) == (0, {})
