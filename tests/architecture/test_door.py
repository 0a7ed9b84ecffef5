"""The command line as a process: its exit statuses, its few words, and what it does not import."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import click
import pytest
import typer
from typer.testing import CliRunner

from confide.__main__ import build_app, run
from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Ledger

HEAVY = ("torch", "transformers", "flwr", "ray", "opacus", "peft", "datasets", "sklearn")
PRIVATE = "a private sentence"
FAILED, USAGE, FAULT, INTERRUPTED, PIPE_CLOSED = 1, 2, 70, 130, 141

LIST_HEAVY = f"""
import json, sys
from confide.__main__ import main
status = 0
try:
    main()
except SystemExit as leave:
    status = leave.code
print(json.dumps([status, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""


def python(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, *arguments],
        **{"capture_output": True, "text": True, "timeout": 100, "check": False} | options,
    )


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def app() -> NoReturn:
        raise error

    return app


def heavy_behind(*arguments: str | Path) -> list[str]:
    done = python("-c", LIST_HEAVY, *arguments)
    status, loaded = json.loads(done.stderr.splitlines()[-1])
    assert status == 0, done.stderr
    assert done.stdout.strip()
    return list(loaded)


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "budget --help",
        "budget plan --epsilon 8 --delta 1e-5 --records 400 --batch 64 --steps 20",
        "budget spent --noise-multiplier 1.5 --sampling-rate 0.04 --steps 20 --delta 1e-5",
        "ledger --help",
        "client --help",
        "report --help",
        "doctor movies",
    ],
)
def test_light_commands_import_nothing_heavy(arguments: str) -> None:
    assert heavy_behind(*arguments.split()) == []


def test_a_federation_is_made_and_changed_without_anything_heavy(tmp_path: Path) -> None:
    made = ["server", "provision", tmp_path / "fed"]
    assert heavy_behind(*made, "--holders", "1", "--host", "localhost") == []
    assert heavy_behind(*made, "--revoke", "holder-1") == []
    modules = ("server.deploy.run", "server.deploy.supervisor", "server.run_folder")
    imports = "".join(f"import confide.{name}; " for name in modules)
    look = f"import sys; {imports}print([n for n in {HEAVY!r} if n in sys.modules])"
    assert python("-c", look).stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["show", "verify"])
def test_the_ledger_is_read_without_anything_heavy(command: str, tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    Ledger.open(file).close()
    assert heavy_behind("ledger", command, file) == []


def test_a_holder_is_set_up_without_anything_heavy(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "a day", "label": "fine"}\n', encoding="utf-8")
    assert heavy_behind("client", "init", tmp_path) == []
    assert heavy_behind("client", "check-data", file) == []


@pytest.mark.parametrize("command", ["join", "status", "resident", "gateway"])
def test_a_deployed_holder_starts_without_anything_heavy(command: str) -> None:
    assert heavy_behind("client", command, "--help") == []


@pytest.mark.parametrize(
    "command", [(), ("budget",), ("ledger",), ("client",), ("report",), ("assets",)]
)
def test_every_command_has_a_help_page(command: tuple[str, ...]) -> None:
    done = python("-m", "confide", *command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout


def commands(command: click.Command, *path: str) -> Iterator[tuple[list[str], click.Command]]:
    yield list(path), command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, *path, name)


def test_every_word_of_every_help_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """click 8.5 empties what typer 0.20 says of an argument, and rich takes [data] for markup."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)  # no sentence is broken
    app, found = build_app(), 0
    for path, command in commands(typer.main.get_command(app)):
        page = " ".join(CliRunner().invoke(app, [*path, "--help"]).output.split())
        said = [one for one in (command.help or "").split("\n\n") if one]
        said += [str(getattr(one, "help", "")) for one in command.params]
        assert said, path
        for words in (" ".join(one.split()) for one in said):
            assert words in page, (path, words)
            found += 1
    assert found > 200


def test_every_option_and_argument_has_a_help_that_is_a_whole_sentence() -> None:
    for path, command in commands(typer.main.get_command(build_app())):
        for one in command.params:
            said = str(getattr(one, "help", ""))
            assert said.endswith("."), (path, one.name, said)
            assert not said.endswith("unless."), (path, one.name, said)


def test_wrong_usage_is_status_2() -> None:
    done = python("-m", "confide", "no-such-command")
    assert done.returncode == USAGE
    assert "no-such-command" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_its_code_its_sentence_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ConfideError("data.empty", "The file is empty.", "Fill it."))) == FAILED
    assert capsys.readouterr().err == "error [data.empty] The file is empty.\nFill it.\n"


def test_an_error_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ConfideError("data.empty", "The file is empty."))) == FAILED
    assert capsys.readouterr().err == "error [data.empty] The file is empty.\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(INTERRUPTED)])
def test_an_interrupt_is_one_line(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(error)) == INTERRUPTED
    assert capsys.readouterr().err == "Interrupted.\n"


WAITING = """
import os, signal, sys, time
from confide import __main__ as door
if sys.argv[2] == "ignored":
    signal.signal(signal.Signals[sys.argv[1]], signal.SIG_IGN)
def waits():
    try:
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        time.sleep(0.5)
        print("went on")
    finally:
        print("cleared up")
door.build_app = lambda: waits
door.main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_told_to_end_clears_up_as_after_ctrl_c(name: str) -> None:
    done = python("-c", WAITING, name, "heard")
    assert (done.returncode, done.stdout) == (INTERRUPTED, "cleared up\n")
    assert done.stderr == "Interrupted.\n"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    done = python("-c", WAITING, "SIGHUP", "ignored")
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\ncleared up\n", "")


def test_the_status_that_a_command_chose_is_kept() -> None:
    chosen = 3
    assert run(raising(SystemExit(chosen))) == chosen
    assert run(raising(SystemExit(None))) == 0
    assert run(lambda: None) == 0


def test_a_fault_shows_its_type_and_never_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ValueError(PRIVATE))) == FAULT
    shown = capsys.readouterr().err
    assert "ValueError" in shown
    assert "CONFIDE_DEBUG=1" in shown
    assert PRIVATE not in shown
    assert "Traceback" not in shown


def test_a_traceback_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_DEBUG", "1")
    assert run(raising(ValueError(PRIVATE))) == FAULT
    assert f"ValueError: {PRIVATE}" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_has_a_code() -> None:
    with Path("/dev/full").open("w") as full:
        done = python(
            "-m", "confide", "--version", capture_output=False, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == FAILED
    assert done.stderr.startswith(f"error [disk.full] {'No space is left'}")
    assert len(done.stderr.splitlines()) == 2


def test_a_full_disk_names_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import errno, sys; from confide.__main__ import run\n"
        "def app(): raise OSError(errno.ENOSPC, 'No space left on device', 'runs/metrics.jsonl')\n"
        "sys.exit(run(app))"
    )
    done = python("-c", code)
    assert done.returncode == FAILED
    assert "at runs/metrics.jsonl." in done.stderr
    assert os.strerror(errno.ENOSPC) not in capfd.readouterr().err


def test_a_reader_that_goes_away_is_met_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = python(
            "-m", "confide", "--help", capture_output=False, stdout=gone, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, "")
