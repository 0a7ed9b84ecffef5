"""A run's last event against the folder that it was written for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from confide.server.seal import broken, seal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text("[run]\n")
    (tmp_path / "adapter" / "inner").mkdir(parents=True)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "adapter" / "inner" / "vocab.txt").write_text("words")
    line(tmp_path, event="start")
    line(tmp_path, event="round", round=1)
    return tmp_path


def line(folder: Path, **event: object) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def end(folder: Path) -> None:
    line(folder, event="end", seal=seal(folder))


def test_a_folder_as_the_run_left_it_is_whole(folder: Path) -> None:
    end(folder)
    assert broken(folder) == []


def test_a_card_that_is_written_from_the_report_is_not_under_the_seal(folder: Path) -> None:
    end(folder)
    (folder / "adapter" / "README.md").write_text("card")
    assert broken(folder) == []
    (folder / "adapter" / "inner" / "README.md").write_text("another")
    assert broken(folder) == ["adapter/inner/README.md is not what the run left"]


def test_a_run_that_went_on_after_a_failed_end_is_sealed_by_its_last_one(folder: Path) -> None:
    end(folder)
    line(folder, event="resume")
    assert broken(folder) == ["metrics.jsonl goes on after the end of the run"]
    end(folder)
    assert broken(folder) == []


def test_a_run_without_an_end_has_no_seal(folder: Path) -> None:
    assert broken(folder) is None
    (folder / "metrics.jsonl").unlink()
    assert broken(folder) is None


@pytest.mark.parametrize("old", ['"round": 1', '"start"', '{"event": "start"}\n'])
def test_a_line_that_was_changed_or_left_out_is_noticed(folder: Path, old: str) -> None:
    end(folder)
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace(old, "", 1), encoding="utf-8")
    (problem,) = broken(folder) or []
    assert problem.startswith("metrics.jsonl has")


def test_other_settings_and_files_of_the_adapter_are_named(folder: Path) -> None:
    end(folder)
    (folder / "config.toml").write_text("[run]\nname = 'x'\n")
    (folder / "adapter" / "inner" / "vocab.txt").unlink()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"others")
    assert broken(folder) == [
        "config.toml is not that of the run",
        "adapter/adapter_model.safetensors is not what the run left",
        "adapter/inner/vocab.txt is not what the run left",
    ]


@pytest.mark.parametrize("told", [{}, {"adapter": 3}, {"lines": "2", "metrics": None}])
def test_a_seal_that_is_none_is_broken_and_no_crash(folder: Path, told: object) -> None:
    line(folder, event="end", seal=told)
    assert broken(folder)
