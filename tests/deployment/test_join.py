"""``confide client join`` as an administrator runs it: two processes, kept alive, then ended."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from confide.client.site.join import status
from confide.common.errors import ConfideError
from tests import tiny
from tests.client.marked import PLACE_MARKER, marked_rows
from tests.deployment.conftest import PEM, ROOT, free_port, tools_for_everybody, wait_for

pytestmark = pytest.mark.timeout(400)

TEXT_OF, NETWORK_OF = "daemon", "nobody"  # users that every machine has


class Joined:
    """A holder whose coordinator is not there yet."""

    def __init__(self, folder: Path, python: str, model: Path) -> None:
        self.python = python
        self.kit, self.own = folder / "kit", folder / "own"
        self.kit.mkdir(mode=0o700)
        self.own.mkdir(mode=0o700)
        (self.kit / "kit.toml").write_text(
            'schema = "confide-kit/1"\nname = "ward"\ncoordinator = "localhost"\n'
            f'fleet = "127.0.0.1:{free_port()}"\nbundles = ["{"a" * 64}"]\n'
            'expires = "2999-01-01"\n'
        )
        (self.kit / "ca.crt").write_text("no certificate")
        (self.kit / "node.key").touch(mode=0o600)
        key = ec.generate_private_key(ec.SECP384R1())
        (self.kit / "node.key").write_bytes(key.private_bytes(*PEM))
        self.data = tiny.write_jsonl(self.own / "text.jsonl", marked_rows())
        self.policy = self.own / "policy.toml"
        self.policy.write_text(f'base-models = ["{model}"]\n{tiny.DATA_TABLE}')
        self.ledger = Path(f"{self.data}.ledger.sqlite")
        self.socket = folder / "run" / "socket"
        self.log = folder / "join.log"
        self.users: list[str] = []
        if os.geteuid() == 0:
            entry = pwd.getpwnam(TEXT_OF)
            for path in (self.own, self.data, self.policy):
                os.chown(path, entry.pw_uid, entry.pw_gid)
            self.users = ["--resident-user", TEXT_OF, "--gateway-user", NETWORK_OF]

    def command(self, *more: str) -> list[str]:
        words = [str(self.kit), "--data", str(self.data), "--policy", str(self.policy)]
        words += ["--socket", str(self.socket), *self.users, *more]
        return [self.python, "-P", "-m", "confide", "client", "join", *words]

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONPATH": f"{ROOT}:{sysconfig.get_paths()['purelib']}",
            "TMPDIR": tempfile.gettempdir(),
        }

    def answered(self, words: str, *options: str) -> subprocess.CompletedProcess[str]:
        """As an administrator who types these answers."""
        return subprocess.run(
            self.command(*options),
            env=self.env,
            input=words,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.command("--yes", "--new-ledger"),
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def well(self) -> dict[str, Any] | None:
        try:
            return status(self.socket)
        except ConfideError:
            return None


@pytest.fixture
def joined(tiny_model: Path) -> Iterator[Joined]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        python: Path | None = Path(sys.executable)
        if os.geteuid() == 0:
            python = tools_for_everybody(folder)
        if python is None:
            pytest.skip("root needs a Python that another user can run")
        yield Joined(folder, str(python), tiny_model)


def below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def resident_of(process: subprocess.Popen[bytes]) -> psutil.Process | None:
    """None while there is none: one that was killed may be a zombie until it is noticed."""
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "resident" in child.cmdline():
                return child
    return None


def another_than(first: psutil.Process, process: subprocess.Popen[bytes]) -> bool:
    found = resident_of(process)
    return found is not None and found.pid != first.pid


def test_it_asks_once_and_starts_nothing_without_a_yes(joined: Joined) -> None:
    done = joined.answered("y\nn\n")
    assert (done.returncode, joined.socket.exists()) == (1, False)
    assert not joined.ledger.exists()
    assert done.stdout.count("Start a new ledger?") == 1
    assert "under whatever file name" in done.stdout
    assert "What will leave this machine" in done.stdout
    assert "170 records" in done.stdout
    assert done.stdout.count("Take part?") == 1
    assert "Nothing was started." in done.stdout
    assert PLACE_MARKER.search(done.stdout.encode()) is None


def test_no_new_ledger_is_started_without_a_word(joined: Joined) -> None:
    """The ledger of a text that was renamed, or one that was moved away, knows what was spent."""
    asked = joined.answered("n\n")
    assert asked.returncode == 1
    assert "Take part?" not in asked.stdout
    silent = joined.answered("", "--yes")
    assert silent.returncode == 1
    assert "[join.new-ledger]" in silent.stderr
    assert not joined.ledger.exists()


@pytest.mark.slow
def test_both_are_kept_alive_and_ended_together(joined: Joined) -> None:
    process = joined.start()
    try:
        report = wait_for(joined.well, 120)
        assert report["name"] == "ward"
        assert report["network_taken_by"]
        first = resident_of(process)
        assert first is not None
        if os.geteuid() == 0:
            assert first.username() == TEXT_OF
            assert joined.ledger.owner() == TEXT_OF
            assert joined.socket.parent.owner() == "root"
        wait_for(lambda: len(below(process)) >= 4, 60)  # the resident, the gateway and its two
        if os.geteuid() == 0:
            assert {p.username() for p in below(process)} == {TEXT_OF, NETWORK_OF}
        first.kill()
        wait_for(lambda: another_than(first, process) and joined.well(), 120)
        everybody = below(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert [p for p in everybody if p.is_running() and p.status() != "zombie"] == []
        lines = [line for line in joined.log.read_text().splitlines() if line.startswith("{")]
        ended = [line for line in map(json.loads, lines) if line["event"] == "ended"]
        assert [line["which"] for line in ended if line["status"] == -9] == ["resident"]
        assert PLACE_MARKER.search(joined.log.read_bytes()) is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_what_it_started_ends_even_when_it_is_killed(joined: Joined) -> None:
    process = joined.start()
    wait_for(lambda: len(below(process)) >= 1, 60)
    everybody = below(process)
    process.kill()
    process.wait()
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in everybody), 60)
