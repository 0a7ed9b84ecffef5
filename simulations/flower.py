"""A Flower of one's own: a private SuperLink, ports and home for one simulated run.

Flower's local SuperLink stays behind after a run, serves any user of the machine, installs the
app's dependencies anew and reports to its makers, all by default; ``flwr run`` returns 0 even when
the run failed. Here everything is switched off by documented variables, the SuperLink is a child
that ends with the run, and success is read from the run folder. ``environment`` is what the
Makefile sets, too.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from ..common.errors import ConfideError
from ..common.settings import Scalar
from ..server.deploy.flower import SWITCHES as _SWITCHES
from ..server.run_folder import RunFolder, folders_in, now, read_events

SWITCHES = {
    **_SWITCHES,
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own warning about a future default, and half a CPU's worth of threads an actor.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.3

_APP = """[project]
name = "confide-simulation"
version = "0.1.0"
description = "A simulated run of an installed confide"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "confide"

[tool.flwr.app.components]
serverapp = "confide.server.app:app"
clientapp = "confide.client.app:app"

[tool.flwr.app.config]
"""


def environment(home: Path, api_port: int, control_port: int) -> dict[str, str]:
    """The variables of a private Flower; set before its SuperLink starts, which keeps them."""
    tools = str(Path(sys.executable).parent)
    return os.environ | {
        **SWITCHES,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(api_port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control_port),
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def simulate(
    config: Mapping[str, Scalar], holders: int, progress: Callable[[dict[str, Any]], None]
) -> Path:
    """Run the federation that ``config`` describes over ``holders`` simulated holders.

    ``progress`` sees every event of the run's metrics.jsonl. Returns the run folder.

    Raises:
        ConfideError: the run's own code, or ``simulation.flower`` when Flower itself failed.
        KeyboardInterrupt: after everything that was started has ended.
    """
    resumed = _resumed(config)
    out = resumed.parent if resumed else Path(str(config["run.out"])).expanduser().resolve()
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        place = Path(scratch)
        _write_app(place / "app", {**config, "run.out": str(out)})
        _write_home(place / "home", holders)
        watch = _Watch(out, resumed, progress)
        try:
            _run(place, watch)
        except KeyboardInterrupt:
            watch.stopped()  # now that nothing is left that could still write
            raise
        if watch.folder is None:
            raise ConfideError(
                "simulation.flower",
                "Flower ended before the run began.",
                _last_words((place / "flwr.log").read_text(errors="replace")),
            )
    return _verdict(watch.folder)


def _run(place: Path, watch: _Watch) -> None:
    command = ["flwr", "run", str(place / "app"), "--stream"]
    with (
        _superlink(place) as env,
        (place / "flwr.log").open("wb") as log,
        subprocess.Popen(
            command, env=env, cwd=place, stdout=log, stderr=log, start_new_session=True
        ) as client,
    ):
        try:
            watch.follow(client)
        finally:
            _end(client)


def _resumed(config: Mapping[str, Scalar]) -> Path | None:
    resume = str(config.get("run.resume", ""))
    return Path(resume).expanduser().resolve() if resume else None


def _write_app(folder: Path, config: Mapping[str, Scalar]) -> None:
    """An app of a few lines: the code is the installed one, not a copy that travels."""
    folder.mkdir()
    text = _APP + tomli_w.dumps(config)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8", newline="\n")
    (folder / "README.md").write_text("A simulated run.\n", encoding="utf-8")


def _write_home(home: Path, holders: int) -> None:
    home.mkdir()
    cpus = os.cpu_count() or 1
    backend = {
        "client-resources": {"num-cpus": 1},
        "init-args": {"num-cpus": cpus, "logging-level": "error", "log-to-driver": False},
    }
    options = {"num-supernodes": holders, "backend": backend}
    local = {"address": ":local:", "options": options}
    text = tomli_w.dumps({"superlink": {"default": "local", "local": local}})
    (home / "config.toml").write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _superlink(place: Path) -> Iterator[dict[str, str]]:
    """A SuperLink that ends when the block does; yields the environment to talk to it."""
    api_port, control_port = _free_ports(2)
    env = environment(place / "home", api_port, control_port)
    command = [
        "flower-superlink",
        "--insecure",
        "--simulation",
        "--isolation",
        "subprocess",
        "--disable-runtime-dependency-installation",
        "--host",
        "127.0.0.1",
        "--port",
        str(api_port),
        "--control-api-address",
        f"127.0.0.1:{control_port}",
    ]
    executable = shutil.which(command[0], path=env["PATH"])
    if executable is None:
        raise ConfideError(
            "simulation.flower", "flower-superlink is not installed beside this Python."
        )
    with (place / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [executable, *command[1:]],
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for_port(api_port, process)
            yield env
        finally:
            _end(process)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(_POLL_SECONDS)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(_POLL_SECONDS)
    raise ConfideError("simulation.flower", "Flower's SuperLink did not start.")


class _Watch:
    """Finds the run's folder and passes on its events until Flower's client has ended."""

    def __init__(
        self, out: Path, resumed: Path | None, progress: Callable[[dict[str, Any]], None]
    ) -> None:
        self.folder = resumed
        self._out, self._known, self._progress = out, folders_in(out), progress
        self._seen = len(read_events(resumed)) if resumed else 0

    def follow(self, client: subprocess.Popen[bytes]) -> None:
        """Return when the run has ended; ``folder`` stays None when no run ever began."""
        while True:
            ended = client.poll() is not None
            if self.folder is None:
                self.folder = max(folders_in(self._out) - self._known, default=None)
            if self.folder is not None:
                new = read_events(self.folder)[self._seen :]
                self._seen += len(new)
                for event in new:
                    self._progress(event)
                if new and new[-1]["event"] == "end":
                    # The report comes after the last event; the client's end says it is there.
                    client.wait(timeout=_START_SECONDS)
                    return
            if ended:
                return
            time.sleep(_POLL_SECONDS)

    def stopped(self) -> None:
        """Leave word in the folder that somebody stopped the run."""
        if self.folder is not None:
            RunFolder(self.folder).event(
                "end", time=now(), status="stopped", code="run.stopped", message="", seconds=0.0
            )


def _verdict(folder: Path) -> Path:
    """The folder of a run that finished; otherwise the run's own code as an error."""
    last = next((e for e in reversed(read_events(folder)) if e["event"] == "end"), None)
    if last is None or last["status"] != "finished":
        code = last["code"] if last else "run.stopped"
        said = (last or {}).get("message") or "The run did not finish."
        raise ConfideError(
            code,
            said.removeprefix(f"[{code}] "),
            f"What there is lies in {folder}; a run with a checkpoint goes on with run.resume.",
        )
    return folder


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child that we started and everything below it, and wait until it is gone.

    Flower's simulation and Ray start sessions of their own and would linger for some seconds,
    so the tree is listed while it still hangs together.
    """
    tree = _tree(process.pid)
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for member in tree:
            with suppress(psutil.NoSuchProcess):
                stop(member)
        _, tree = psutil.wait_procs(tree, timeout=_STOP_SECONDS)
        if not tree:
            break
    process.wait()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _last_words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "It said nothing."
