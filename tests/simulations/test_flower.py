"""Flower's surprises, taken care of: real runs by its simulation engine on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.ledger import Ledger
from confide.common.settings import from_flat
from confide.server.report import rounds_text
from confide.server.run_folder import RunFolder, read_events, run_settings
from confide.simulations import flower
from confide.simulations.flower import simulate
from tests import tiny

HOLDERS = 3


@pytest.fixture
def flower_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], set[str]]:
    """Looks for living SuperLinks and simulations of this test, also orphaned ones.

    A variable of the environment, which children inherit, tells them from those of a test that runs
    beside it.
    """
    mark = f"CONFIDE_TEST_MARK={tmp_path}"
    monkeypatch.setenv(*mark.split("=", 1))

    def find() -> set[str]:
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    ours = mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue  # it ended while we looked, or is another user's
                if ours and state != "Z" and ("flower-superlink" in line or "flwr-sim" in line):
                    found.add(f"{entry.name} {line}")
        return found

    return find


@pytest.fixture
def foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is another project's, with rooms of the same names as ours."""
    for room in ("client", "common", "server"):
        (tmp_path / "theirs" / room).mkdir(parents=True)
        (tmp_path / "theirs" / room / "__init__.py").write_text("raise SystemExit('foreign')\n")
    monkeypatch.chdir(tmp_path / "theirs")
    return tmp_path


@pytest.mark.timeout(240)
def test_a_simulated_run_from_a_foreign_folder_finishes_and_leaves_nothing_running(
    foreign_folder: Path,
    tiny_model: Path,
    tiny_federation: Path,
    flower_processes: Callable[[], set[str]],
) -> None:
    events: list[dict[str, Any]] = []
    odd = 'Klinik \U0001f600 "Süd"\x7f'  # yoetz#208: Flower ended before the run began
    config = tiny.config(tiny_model, tiny_federation, foreign_folder / "runs", run__coordinator=odd)
    folder = simulate(config, HOLDERS, events.append)
    assert run_settings(folder).run.coordinator == odd
    assert [e["event"] for e in events] == [
        "start",
        "ready",
        "evaluation",
        *["round", "evaluation"] * 2,
        "end",
    ]
    assert events == read_events(folder)
    for event in events:
        if event["event"] == "round":
            assert len(event["accepted"]) == HOLDERS, "a round must wait until all are there"
    ledgers = sorted(folder.glob("holders/*/ledger.sqlite"))
    assert [p.parent.name for p in ledgers] == ["holder-00", "holder-01", "holder-02"]
    assert (folder / "report.html").is_file()
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert flower_processes() == set()


@pytest.mark.parametrize("word", tiny.ODD_WORDS)
def test_the_app_of_a_run_keeps_settings_of_any_characters(tmp_path: Path, word: str) -> None:
    """yoetz#208: of a label with an emoji Flower was given a file that is no TOML."""
    config = tiny.config(tmp_path, tmp_path, tmp_path, task__labels=f"{word},other")
    flower._write_app(tmp_path / "app", config)
    app = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text(encoding="utf-8"))
    assert app["tool"]["flwr"]["app"]["config"] == config


@pytest.mark.timeout(240)
def test_a_failed_run_is_an_error_with_the_runs_own_code_though_flower_says_zero(
    tmp_path: Path,
    tiny_model: Path,
    tiny_federation: Path,
    flower_processes: Callable[[], set[str]],
) -> None:
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs", round__timeout=3.0)
    with pytest.raises(ConfideError) as caught:
        simulate(config, HOLDERS - 1, lambda _: None)
    assert caught.value.code == "run.too-few-holders"
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_events(folder)[-1]["status"] == "failed"
    assert "2 holders are connected" in caught.value.message
    assert str(folder) in caught.value.hint
    assert flower_processes() == set()


def with_home(place: Path) -> Path:
    flower._write_home(place / "home", HOLDERS)
    return place


@pytest.mark.timeout(240)
def test_plain_flwr_run_does_the_same_job_from_the_checkout(
    root: Path,
    tmp_path: Path,
    tiny_model: Path,
    tiny_federation: Path,
    flower_processes: Callable[[], set[str]],
) -> None:
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs", round__min_holders=3)
    rows = [f"{k}='{v}'" if isinstance(v, str) else f"{k}={v}" for k, v in config.items()]
    short = tempfile.TemporaryDirectory(prefix="confide-", dir=flower._short_tmp())
    with short as scratch, flower._superlink(with_home(Path(scratch))) as env:
        done = subprocess.run(
            ["flwr", "run", str(root), "--stream", "--run-config", " ".join(rows)],
            env=env,
            cwd=root,
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        assert flower_processes(), "the look for living processes must find those that live"
    assert flower_processes() == set()
    (folder,) = (tmp_path / "runs").iterdir()
    said = done.stdout + done.stderr
    assert read_events(folder)[-1]["status"] == "finished", said[-2000:]
    assert str(folder) in said
    assert "epsilon" in said


def test_the_private_flower_installs_nothing_reports_nothing_and_uses_its_own_ports(
    tmp_path: Path,
) -> None:
    env = flower.environment(tmp_path, 1234, 1235)
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert env["FLWR_HOME"] == str(tmp_path)
    assert env["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] == "1234"
    assert env["FLWR_LOCAL_CONTROL_API_PORT"] == "1235"
    assert env["PATH"].split(os.pathsep)[0].endswith("bin")


def test_flower_is_ones_own_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """slime#757, levanter#376, ray#35010: proxies, a stale Ray, folders that no socket can have."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "f\u00fcr-alle"))
    env = flower.environment(tmp_path / "home", 1, 2)
    assert env["RAY_ADDRESS"] == "local"
    assert env["RAY_TMPDIR"] == env["TMPDIR"] == str(tmp_path)
    assert "127.0.0.1" in env["no_proxy"].split(",")


@pytest.mark.parametrize("name", ["f\u00fcr-alle", "a" * 60])
def test_scratch_files_lie_where_a_socket_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    odd = tmp_path / name
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    found = flower._short_tmp()
    assert found is not None
    assert found.isascii()
    assert len(found) <= flower._LONGEST_TMP


@pytest.mark.parametrize(("usable", "holders", "workers"), [(1, 10, 1), (64, 3, 3), (2, 10, 2)])
def test_ray_gets_what_this_process_may_use_and_no_more_workers_than_holders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: int, holders: int, workers: int
) -> None:
    """ray#8983: a container with 2 of 64 processors was given 64 workers."""
    monkeypatch.setattr(flower, "processors", lambda: usable)
    flower._write_home(tmp_path / "home", holders)
    local = tomllib.loads((tmp_path / "home" / "config.toml").read_text())["superlink"]["local"]
    assert local["options"]["num-supernodes"] == holders
    assert local["options"]["backend"]["init-args"]["num-cpus"] == workers


def test_flower_that_cannot_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_federation: Path
) -> None:
    monkeypatch.setattr(flower.shutil, "which", lambda *_, **__: None)
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs")
    with pytest.raises(ConfideError, match=r"simulation\.flower"):
        simulate(config, HOLDERS, lambda _: None)


STOPPED = """
import json, sys
from confide.simulations.flower import simulate
simulate(json.loads(sys.argv[1]), 3, lambda event: print(event["event"], flush=True))
"""


# --- a run is another's only by its name; what Flower says when it fails ---

CLIENT = """#!{python}
import json, os, pathlib, sys, time, tomllib
sys.path.insert(0, {tests!r})
from confide.common.settings import from_flat
from confide.server.run_folder import RunFolder
app = tomllib.loads((pathlib.Path(sys.argv[2]) / "pyproject.toml").read_text("utf-8"))
config = app["tool"]["flwr"]["app"]["config"]
command = config["run.id"]
{body}
"""
BEGIN = """
folder = RunFolder.named(config["run.out"], command)
folder.event("start", run=folder.id, command=command)
"""
FINISH = """
folder.event("end", command=command, status="finished", code="", message="")
"""
STRANGER = """
other = RunFolder.create(config["run.out"], "zz")
other.event("start", run=other.id, command="")
other.event("end", command="", status="finished", code="", message="")
"""


@pytest.fixture
def played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_federation: Path
) -> Callable[..., tuple[Callable[..., Path], list[dict[str, Any]]]]:
    """``played(body)``: a call of ``simulate`` whose ``flwr run`` is a few lines of Python, and the
    events that it was told."""

    def play(body: str, **changes: Any) -> tuple[Callable[..., Path], list[dict[str, Any]]]:
        tools, heard = tmp_path / "tools", list[dict[str, Any]]()
        tools.mkdir(exist_ok=True)
        script = CLIENT.format(python=sys.executable, tests=str(Path.cwd()), body=body)
        (tools / "flwr").write_text(script)
        (tools / "flwr").chmod(0o755)

        @contextmanager
        def superlink(place: Path) -> Iterator[dict[str, str]]:
            env = flower.environment(place / "home", 1, 2)
            yield env | {"PATH": f"{tools}{os.pathsep}{env['PATH']}"}

        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(flower, "_superlink", superlink)
        monkeypatch.setattr(flower, "_POLL_SECONDS", 0.02)
        config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs", **changes)

        def call(**more: Any) -> Path:
            return simulate({**config, **more}, HOLDERS, heard.append)

        call.config = config  # type: ignore[attr-defined]
        return call, heard

    return play


def test_a_strangers_run_in_the_same_folder_is_not_taken_for_ones_own(played: Any) -> None:
    """hydra#2925: two began at once, and one told the other's figures."""
    call, heard = played(STRANGER + BEGIN + FINISH)
    folder = call()
    assert [event["event"] for event in heard] == ["start", "end"]
    assert heard[0]["run"] == folder.name


def test_a_run_that_never_began_says_why_and_leaves_its_end_and_its_log(
    played: Any, tmp_path: Path
) -> None:
    """slime#757: the edge of a box was all that was told."""
    box = (
        "\\x1b[31m\\u2500\\u2500 Error \\u2500\\u2500\\n\\u2502 no port is free: denied \\u2502\\n"
    )
    call, heard = played(f'{STRANGER}print("{box}\\u2570\\u2500\\u256f")\nsys.exit(1)')
    with pytest.raises(ConfideError) as caught:
        call()
    assert caught.value.code == "simulation.flower"
    assert "no port is free: denied" in caught.value.message
    assert "\u2500" not in caught.value.message
    (folder,) = {path for path in (tmp_path / "runs").iterdir() if not path.name.endswith("zz")}
    assert read_events(folder)[-1]["code"] == "simulation.flower"
    assert "no port is free" in (folder / "flower.log").read_text()
    assert [event["event"] for event in heard] == ["end"]


def test_a_superlink_that_does_not_start_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_federation: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "flower-superlink").write_text("#!/bin/sh\necho 'cannot bind port 7'\nexit 1\n")
    (tools / "flower-superlink").chmod(0o755)
    monkeypatch.setattr(flower.shutil, "which", lambda *_, **__: str(tools / "flower-superlink"))
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs")
    with pytest.raises(ConfideError, match="cannot bind port 7") as caught:
        simulate(config, HOLDERS, lambda _: None)
    assert caught.value.code == "simulation.flower"
    (folder,) = (tmp_path / "runs").iterdir()
    assert "cannot bind port 7" in (folder / "flower.log").read_text()
    assert read_events(folder)[-1]["code"] == "simulation.flower"


def test_a_report_that_takes_long_is_waited_for(played: Any, monkeypatch: Any) -> None:
    """The run's folder is held until the report is there; only then does a clock start."""
    monkeypatch.setattr(flower, "_START_SECONDS", 0.1)
    body = """
folder = RunFolder.named(config["run.out"], command)
with folder.held():
    folder.event("start", run=folder.id, command=command)
    folder.event("end", command=command, status="finished", code="", message="")
    time.sleep(1.0)
    folder.write("report.json", b"{}")
time.sleep(60)
"""
    call, _ = played(body)
    assert (call() / "report.json").is_file()


def test_a_resume_that_fails_at_once_is_no_success_of_the_old_run(played: Any) -> None:
    call, heard = played(BEGIN + 'folder.write("checkpoint/x", b"")\n' + FINISH)
    folder = call()
    RunFolder(folder).write_config(from_flat(call.config).to_flat())
    call, heard = played("sys.exit('it died at once')")
    with pytest.raises(ConfideError, match="it died at once") as caught:
        call(**{"run.resume": str(folder)})
    assert caught.value.code == "simulation.flower"
    assert [event["event"] for event in heard] == ["end"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_worker_that_was_killed_costs_three_rounds_at_most(
    tmp_path: Path, tiny_model: Path, tiny_federation: Path
) -> None:
    """FAULTS F3: 29 rounds were abandoned and charged, and it ended with an accuracy."""
    killed: list[int] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "round" and not killed:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "ClientAppActor" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)

    changes = {"round__count": 30, "round__min_holders": HOLDERS}
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs", **changes)
    folder = simulate(config, HOLDERS, kill)
    assert killed
    rounds = [e["abandoned"] for e in read_events(folder) if e["event"] == "round"]
    assert sum(rounds) <= 3 * (1 + sum(not one for one in rounds[1:]))
    if rounds[-1]:  # nobody came back
        assert rounds[-3:] == [True] * 3
        report = json.loads((folder / "report.json").read_text())
        assert "of 30 rounds counted" in rounds_text(report)


HOSTILE = """
import json, sys
from confide.simulations.flower import simulate
print(simulate(json.loads(sys.argv[1]), 3, lambda event: None))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_simulation_runs_whatever_its_environment_says(
    tmp_path: Path, tiny_model: Path, tiny_federation: Path
) -> None:
    """slime#757, levanter#376, ray#35010, ray#8983: a proxy that answers nobody, a Ray long gone,
    a folder for scratch files that no socket can have, one processor."""
    odd = tmp_path / f"f\u00fcr-alle-{'x' * 60}"
    odd.mkdir()
    env = os.environ | {
        "http_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "RAY_ADDRESS": "127.0.0.1:1",
        "TMPDIR": str(odd),
    }
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs")
    command = ["taskset", "-c", "0", sys.executable, "-c", HOSTILE, json.dumps(config)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = Path(done.stdout.split()[-1])
    assert read_events(folder)[-1]["status"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_simulations_at_once_in_one_folder_each_tell_their_own_outcome(
    tmp_path: Path, tiny_model: Path, tiny_federation: Path
) -> None:
    """Promise 38, hydra#2925: the second told the first one's figures, and was killed with it."""
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs")
    heard: list[list[dict[str, Any]]] = [[], []]

    def begin(number: int) -> Path:
        return simulate({**config, "run.seed": number}, HOLDERS, heard[number].append)

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(begin, range(2))
    assert first != second
    for number, folder in enumerate((first, second)):
        assert heard[number] == read_events(folder)
        assert run_settings(folder).run.seed == number
        assert (folder / "report.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_stopped_by_ctrl_c_says_so_and_goes_on_where_it_was(
    tmp_path: Path,
    tiny_model: Path,
    tiny_federation: Path,
    flower_processes: Callable[[], set[str]],
) -> None:
    config = tiny.config(tiny_model, tiny_federation, tmp_path / "runs", round__count=40)
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, json.dumps(config)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "round":
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
    assert process.returncode != 0
    assert flower_processes() == set()
    (folder,) = (tmp_path / "runs").iterdir()
    last = read_events(folder)[-1]
    assert (last["event"], last["status"], last["code"]) == ("end", "stopped", "run.stopped")

    done = [e["round"] for e in read_events(folder) if e["event"] == "round"][-1]
    assert done < 40
    elsewhere = {"run.resume": str(folder), "run.out": str(tmp_path / "elsewhere")}
    assert simulate(config | elsewhere, HOLDERS, lambda _: None) == folder
    rounds = [e["round"] for e in read_events(folder) if e["event"] == "round"]
    assert rounds[-1] == 40
    with Ledger.open(folder / "holders" / "holder-00" / "ledger.sqlite") as ledger:
        charged = sum(s.steps for s in ledger.steps(folder.name))
    assert charged == 40, "each round is charged once, in one ledger, whoever stopped in between"
