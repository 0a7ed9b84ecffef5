"""Flower's own programs, started and asked as their documentation has it: no private function.

A SuperLink behind the door, a SuperExec that starts ServerApps with a shared secret, and ``flwr``
for everything else. Telemetry, update checks and the installation of packages at run time are off.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ...common.errors import ConfideError
from ...common.machine.paths import write_public, write_secret
from ...common.machine.processes import flower_environment, last_words, loopback
from .federation import Federation

FEDERATION = "CONFIDE_FEDERATION"  # whose server started a program: its folder
_SECRET_BYTES = 32
_CALL_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A SuperNode as the SuperLink sees it: registered, online, offline or unregistered."""

    id: int
    status: str

    @property
    def online(self) -> bool:
        return self.status == "online"


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run as the SuperLink sees it, e.g. ``running`` or ``finished:failed``."""

    id: int
    status: str
    bundle: str

    @property
    def over(self) -> bool:
        return self.status.startswith("finished")


def environment(federation: Federation) -> dict[str, str]:
    """The variables for every program of Flower; its home is the federation's own."""
    return {**flower_environment(_home(federation)), FEDERATION: str(federation.folder)}


def write_home(federation: Federation) -> None:
    """Write what ``flwr`` and the two servers read: the connection, and the shared secret."""
    name = federation.name
    connection = {"address": federation.superlink, "root-certificates": str(federation.ca)}
    text = tomli_w.dumps({"superlink": {"default": name, name: connection}})
    write_public(_home(federation) / "config.toml", text.encode())
    if not _secret(federation).is_file():
        write_secret(_secret(federation), os.urandom(_SECRET_BYTES).hex().encode())


def superlink_command(federation: Federation) -> list[str]:
    """The SuperLink: on the loopback alone, with TLS, and with no node but those registered."""
    door = federation.folder / "door"
    host, port = loopback(), str(federation.superlink_port)
    return [
        _program("flower-superlink"),
        *("--ssl-certfile", str(door / "server.crt")),
        *("--ssl-keyfile", str(door / "server.key")),
        *("--ssl-ca-certfile", str(federation.ca)),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(_secret(federation))),
        "--disable-runtime-dependency-installation",
        *("--database", str(_home(federation) / "superlink.sqlite")),
        *("--host", host, "--port", port),
    ]


def superexec_command(federation: Federation) -> list[str]:
    """What starts the ServerApp of a run; nobody without the secret gets a task."""
    return [
        _program("flower-superexec"),
        *("--runtime-api-address", federation.superlink),
        *("--root-certificates", str(federation.ca)),
        *("--superexec-auth-secret-file", str(_secret(federation))),
    ]


def nodes(federation: Federation) -> list[Node]:
    """The nodes that the SuperLink knows, those that were taken away included."""
    found = _flwr(federation, "supernode", "list", federation.name, "--format", "json", "--verbose")
    return [Node(id=int(row["node-id"]), status=str(row["status"])) for row in found["nodes"]]


def register(federation: Federation, holder: str) -> int:
    """Let a holder's key in; returns its node.

    Raises:
        ConfideError: ``federation.key-used``: Flower takes a key once, also after it was shut out.
    """
    key = str(federation.public_key(holder))
    command = ["supernode", "register", key, federation.name, "--name", holder]
    return int(_flwr(federation, *command, "--format", "json")["node-id"])


def unregister(federation: Federation, node: int) -> None:
    """Shut a node out, also while it is connected."""
    _flwr(federation, "supernode", "unregister", str(node), federation.name, "--format", "json")


def runs(federation: Federation) -> list[FlowerRun]:
    """The runs that the SuperLink knows."""
    found = _flwr(federation, "list", federation.name, "--format", "json")
    return [
        FlowerRun(id=int(row["run-id"]), status=str(row["status"]), bundle=str(row["fab-hash"]))
        for row in found["runs"]
    ]


def start_run(federation: Federation, config: Path) -> int:
    """Start the federation's bundle with the run config in ``config`` (TOML); returns the run."""
    command = ["run", str(federation.app), federation.name, "--run-config", str(config)]
    return int(_flwr(federation, *command, "--format", "json")["run-id"])


def stop_run(federation: Federation, run: int) -> None:
    """Stop a run."""
    _flwr(federation, "stop", str(run), federation.name, "--format", "json")


def build(federation: Federation, place: Path) -> bytes:
    """The app bundle that ``flwr run`` would send, built in the folder ``place``.

    Raises:
        ConfideError: ``provision.bundle`` when Flower does not take the app.
    """
    done = _call(federation, ["build", "--app", str(federation.app)], place)
    found = next(place.glob("*.fab"), None)
    if found is None:
        raise ConfideError(
            "provision.bundle",
            f"{federation.app} cannot be built: {last_words(done.stderr or done.stdout)}",
            "Restore it, or make a new one with `--renew bundle`.",
        )
    return found.read_bytes()


def _flwr(federation: Federation, *arguments: str) -> Mapping[str, Any]:
    """What ``flwr ... --format json`` says.

    Raises:
        ConfideError: ``server.down`` when nobody answers, ``server.flower`` for anything else.
    """
    done = _call(federation, arguments, None)
    match = re.search(r"\{.*\}", done.stdout, re.DOTALL)  # there may be lines of greeting before it
    try:
        said = json.loads(match.group(0)) if match else {}
    except ValueError:
        said = {}
    if done.returncode == 0 and said.get("success"):
        return dict(said)
    text = str(said.get("error-message") or done.stderr or done.stdout).strip()
    if "Connection to the SuperLink is unavailable" in text:
        raise ConfideError(
            "server.down",
            f"Nobody answers at {federation.superlink}.",
            f"Start it: `confide server start {federation.folder}`.",
        )
    if "already in use" in text:
        raise ConfideError(
            "federation.key-used",
            "Flower has seen this key before, and takes no key twice.",
            "Give the holder a new one: `confide server provision DIR --renew NAME`.",
        )
    asked = " ".join(arguments[:2])
    raise ConfideError("server.flower", f"`flwr {asked}` failed: {last_words(text)}")


def _call(
    federation: Federation, arguments: Sequence[str], place: Path | None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [_program("flwr"), *arguments],
            env=environment(federation),
            cwd=place or federation.folder,
            capture_output=True,
            text=True,
            timeout=_CALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfideError(
            "server.down", f"{federation.superlink} did not answer within {_CALL_SECONDS:g} s."
        ) from None


def _program(name: str) -> str:
    """A program beside this Python, else on the path.

    Raises:
        ConfideError: ``server.program``.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which(name, path=path)
    if found is None:
        raise ConfideError("server.program", f"{name} is not installed beside this Python.")
    return found


def _home(federation: Federation) -> Path:
    return federation.folder / "flower"


def _secret(federation: Federation) -> Path:
    return _home(federation) / "superexec.secret"
