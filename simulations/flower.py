"""A private Flower for one simulated run: its own SuperLink, ports and home folder.

Flower's local SuperLink stays behind after a run, serves any user of the machine, installs the
app's dependencies anew and reports to its makers, all by default; ``flwr run`` returns 0 even when
the run failed. Here documented variables switch all of that off. The SuperLink is a child process
that ends with the run. Success is read from the events that this call wrote into the run folder.
The Makefile sets ``environment``, too.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from ..common.errors import ConfideError
from ..common.machine.installed import need
from ..common.machine.processes import (
    answers,
    end,
    flower_environment,
    free_ports,
    last_words,
    plain,
    processors,
)
from ..common.settings import Scalar
from ..server.run_folder import RunFolder, Tail, new_id, now

_SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own warning about a future default, and half a CPU's worth of threads an actor.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
}
_START_SECONDS = 60.0
_POLL_SECONDS = 0.3
_HOST = "127.0.0.1"  # where `flwr` looks for a local SuperLink
_LOG = "flower.log"  # what Flower said, kept beside a run that it did not bring to its end
_LONGEST_TMP = 32  # Ray's sockets lie 70 letters below it, and no socket's path has more than 107


def environment(home: Path, api_port: int, control_port: int) -> dict[str, str]:
    """The variables of a private Flower; set before its SuperLink starts, which keeps them.

    Nothing on the loopback goes through a proxy (slime#757). Ray is started anew, whatever another
    one on the machine left in the environment (levanter#376). Its sockets lie in a folder whose
    path is short and of plain letters (ray#35010).
    """
    return flower_environment(home) | {
        **_SWITCHES,
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(home.parent),
        "TMPDIR": str(home.parent),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(api_port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control_port),
    }


def simulate(
    config: Mapping[str, Scalar], holders: int, progress: Callable[[dict[str, Any]], None]
) -> Path:
    """Run the federation that ``config`` describes over ``holders`` simulated holders.

    ``progress`` sees every event that the run's metrics.jsonl gets for this call. Returns the run
    folder.

    Raises:
        ConfideError: the run's own code; ``run.resume``, ``run.busy`` or, without Ray,
            ``extra.missing`` before anything is started;
            ``simulation.flower`` when Flower itself failed.
        KeyboardInterrupt: after everything that was started has ended.
    """
    need("ray")  # by which Flower's engine runs the holders
    folder = _folder(config)
    command = new_id("resumed") if config.get("run.resume") else folder.id
    watch = _Watch(folder, command, progress)
    named = {"run.out": str(folder.path.parent), "run.id": command}
    with tempfile.TemporaryDirectory(prefix="confide-", dir=_short_tmp()) as scratch:
        place = Path(scratch)
        try:
            _write_app(place / "app", {**config, **named})
            _write_home(place / "home", holders)
            _run(place, watch)
        except KeyboardInterrupt:
            watch.ended("stopped", "run.stopped", "")  # nothing is left that could still write
            raise
        except ConfideError as error:
            watch.ended("failed", error.code, error.message)
            raise
        finally:
            if not watch.finished:
                _keep_log(place, folder)
        if not watch.end:
            said = f"Flower ended, and the run had not. {_last_words(place)}"
            watch.ended("failed", "simulation.flower", said)
    return _verdict(folder.path, watch.end)


def _folder(config: Mapping[str, Scalar]) -> RunFolder:
    """The folder of a new run, named before Flower starts, or that of a run to be resumed."""
    folder = RunFolder.of(config)
    with folder.held():  # or somebody else is at work on it
        return folder


def _short_tmp() -> str | None:
    """A folder for scratch files whose path sockets can have; None for the system's own."""
    named = tempfile.gettempdir()
    if named.isascii() and len(named) <= _LONGEST_TMP:
        return None
    usual = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a folder of a random name is made there
    return next((path for path in usual if os.access(path, os.W_OK | os.X_OK)), None)


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
            end([client])


def _write_app(folder: Path, config: Mapping[str, Scalar]) -> None:
    """Write an app of a few lines; it uses the installed code and carries no copy."""
    folder.mkdir()
    app = {
        "publisher": "confide",
        "components": {
            "serverapp": "confide.simulations.app:app",
            "clientapp": "confide.client.app:app",
        },
        "config": dict(config),
    }
    project = {
        "name": "confide-simulation",
        "version": "0.1.0",
        "description": "A simulated run of an installed confide",
        "license": "Apache-2.0",
    }
    content = {"project": project, "tool": {"flwr": {"app": app}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(content), encoding="utf-8")
    (folder / "README.md").write_text("A simulated run.\n", encoding="utf-8")


def _write_home(home: Path, holders: int) -> None:
    """Write a home with a worker for each processor that this process may use, but no more than
    there are holders."""
    home.mkdir()
    backend = {
        "client-resources": {"num-cpus": 1},
        "init-args": {
            "num-cpus": max(1, min(processors(), holders)),
            "logging-level": "error",
            "log-to-driver": False,
        },
    }
    local = {"address": ":local:", "options": {"num-supernodes": holders, "backend": backend}}
    content = {"superlink": {"default": "local", "local": local}}
    (home / "config.toml").write_text(tomli_w.dumps(content), encoding="utf-8")


@contextmanager
def _superlink(place: Path) -> Iterator[dict[str, str]]:
    """A SuperLink that ends when the block does; yields the environment to talk to it."""
    api_port, control_port = free_ports(2, _HOST)
    env = environment(place / "home", api_port, control_port)
    command = [
        "flower-superlink",
        "--insecure",
        "--simulation",
        "--isolation",
        "subprocess",
        "--disable-runtime-dependency-installation",
        "--host",
        _HOST,
        "--port",
        str(api_port),
        "--control-api-address",
        f"{_HOST}:{control_port}",
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
            if not _came_up(api_port, process):
                raise ConfideError(
                    "simulation.flower",
                    f"Flower's SuperLink did not start. {_last_words(place)}",
                    "Its log is beside the run.",
                )
            yield env
        finally:
            end([process])


def _came_up(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether somebody listens on a port before the process ends or time is up."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if answers(port, _HOST):
            return True
        time.sleep(_POLL_SECONDS)
    return False


class _Watch(Tail):
    """Passes on the events of one command's run until Flower's client has ended."""

    def __init__(
        self, folder: RunFolder, command: str, progress: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(folder.path, command, progress)
        self._run = folder

    @property
    def finished(self) -> bool:
        return bool(self.end.get("status") == "finished")

    def follow(self, client: subprocess.Popen[bytes]) -> None:
        """Return when Flower's client has ended, however long the report takes. If the run has
        released its folder and the client lives on, return a minute later."""
        deadline = math.inf
        while True:
            over = client.poll() is not None
            self.look()
            if over or time.monotonic() > deadline:
                return
            if self.end and deadline == math.inf and self._is_free():
                deadline = time.monotonic() + _START_SECONDS
            time.sleep(_POLL_SECONDS)

    def ended(self, status: str, code: str, message: str) -> None:
        """Write into the folder how the run ended, if the run did not do so itself."""
        self.look()
        if self.end:
            return
        with suppress(ConfideError), self._run.held():
            self._run.event(
                "end",
                time=now(),
                command=self.command,
                status=status,
                code=code,
                message=message,
                seconds=0.0,
            )
        self.look()

    def _is_free(self) -> bool:
        with suppress(ConfideError), self._run.held():
            return True
        return False


def _verdict(folder: Path, end: Mapping[str, Any]) -> Path:
    """The folder of a run that finished; otherwise the run's own code as an error."""
    if end.get("status") != "finished":
        code = end.get("code", "run.stopped")
        said = end.get("message") or "The run did not finish."
        raise ConfideError(
            code,
            said.removeprefix(f"[{code}] "),
            f"What there is lies in {folder}; a run with a checkpoint goes on with run.resume.",
        )
    return folder


def _log_of(place: Path) -> str:
    """What Flower's processes said, the client's own last."""
    logs = (place / "superlink.log", place / "flwr.log")
    return "\n".join(path.read_text(errors="replace") for path in logs if path.is_file())


def _last_words(place: Path) -> str:
    return f"Its last words: {last_words(_log_of(place))}"


def _keep_log(place: Path, folder: RunFolder) -> None:
    with suppress(ConfideError):  # a full disk is no second failure
        folder.write(_LOG, plain(_log_of(place)).encode())
