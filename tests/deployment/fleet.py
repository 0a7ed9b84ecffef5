"""A whole federation on the loopback: a coordinator and three holders, each as its own commands
have it, with TLS and node authentication, over a tiny model and text full of markers."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from confide.client.site.join import status
from confide.common.errors import ConfideError
from confide.common.masking.enrolment import read_request
from confide.common.privacy.ledger import Ledger
from confide.server.deploy import provision as work
from confide.server.deploy.federation import Federation
from confide.server.deploy.status import collect
from tests import tiny
from tests.deployment.conftest import ROOT, tools_for_everybody, wait_for
from tests.deployment.running import free_ports, server
from tests.deployment.wire import Wire

HOLDERS = ("holder-1", "holder-2", "holder-3")
RECORDS = 56  # three of them have 504 markers
MARKER = "zqmarker"  # too long to come up in a signature by chance
TEXT_OF, NETWORK_OF = "daemon", "nobody"  # users that every machine has


def marked(number: int) -> list[dict[str, str]]:
    """A holder's rows: a marker in every text, for every person, in a column that is not read."""
    rows = tiny.rows(RECORDS, seed=number)
    for i, row in enumerate(rows):
        row["text"] += f" {MARKER}t{number}{i:02d}"
        row["person"] = f"{MARKER}p{number}{i:02d}"
        row["note"] = f"{MARKER}n{number}{i:02d}"
    return rows


def watching(env: Mapping[str, str], words: Path) -> dict[str, str]:
    """The environment of a process that adds no noise and keeps the words of secure sums."""
    there = env.get("PYTHONPATH", str(ROOT))
    return {
        **env,
        "PYTHONPATH": f"{ROOT / 'tests' / 'deployment' / 'watched'}:{there}",
        "CONFIDE_TEST_WORDS": str(words),
    }


class Member:
    """A holder: a kit, text, and ``confide client join`` where it runs: at the test's own machine,
    by way of its ``wire``, or at another ``inside`` which its commands are run. One that ``enrols``
    has its kit, and the keys that it makes, nowhere but at its own place."""

    def __init__(
        self,
        place: Path,
        fed: Federation,
        name: str,
        model: Path | str,
        python: str,
        inside: Sequence[str] | None = None,
        text: Path | None = None,
        *,
        enrols: bool = False,
    ) -> None:
        self.name, self.python, self.inside = name, python, inside or ()
        self.kit = place / name / "kit" if enrols else fed.kit(name)
        self.own = place / name / f"{MARKER}f1 ward"
        self.own.mkdir(parents=True)
        self.data = self.own / f"{MARKER}f2.jsonl"
        if text is None:
            tiny.write_jsonl(self.data, marked(int(name[-1])))
        else:
            shutil.copy(text, self.data)
        self.ledger = self.own / f"{MARKER}f3.sqlite"
        self.policy = self.own / "policy.toml"
        self.model = model
        self.more = ""  # of the policy
        self.watched = False
        self.allow()
        self.log = place / f"{name}.log"
        self.socket = place / name / "run" / "socket"
        self.users: list[str] = []
        if os.geteuid() == 0:
            entry = pwd.getpwnam(TEXT_OF)
            for path in (self.own, self.data, self.policy):
                os.chown(path, entry.pw_uid, entry.pw_gid)
            self.own.chmod(0o700)
            self.users = ["--resident-user", TEXT_OF, "--gateway-user", NETWORK_OF]
        self.process: subprocess.Popen[bytes] | None = None

    def enrol(self, fed: Federation) -> Federation:
        """Make keys here, have the request taken, and copy the kit that comes back."""
        words = [sys.executable, "-m", "confide", "client", "enrol", str(self.kit), *self.users]
        words += ["--name", self.name, "--data", str(self.data), "--ledger", str(self.ledger)]
        subprocess.run(words, check=True, capture_output=True)
        changed = work.add(fed, self.name, read_request(self.kit / "request.toml"))
        shutil.copytree(changed.kit(self.name), self.kit, dirs_exist_ok=True)
        return changed

    def put_wire(self, fed: Federation) -> None:
        """The kit that was handed over, but that its way leads through this test."""
        self.wire = Wire(fed)
        text = (self.kit / "kit.toml").read_text()
        assert f'fleet = "localhost:{fed.port}"' in text
        here = f'fleet = "localhost:{self.wire.port}"'
        (self.kit / "kit.toml").write_text(text.replace(f'fleet = "localhost:{fed.port}"', here))

    def allow(self, max_epsilon: float = 1000) -> None:
        """What this holder's policy says, from the next task on."""
        self.policy.write_text(
            f"max-delta = 0.01\nmax-epsilon = {max_epsilon}\nmax-epsilon-per-run = 1000\n"
            f'base-models = ["{self.model}"]\nallow-unprotected = true\n{self.more}'
            f"{tiny.DATA_TABLE}"
        )

    def call(self, name: str) -> None:
        """From the next start on it answers under this name, whoever has the key."""
        path = self.kit / "kit.toml"
        path.write_text(re.sub(r'(?m)^name = ".*"$', f'name = "{name}"', path.read_text()))

    def start(self) -> None:
        words = [*self.inside, self.python, "-P", "-m", "confide", "client", "join"]
        words += [str(self.kit), "--yes"]
        words += ["--data", str(self.data), "--policy", str(self.policy)]
        words += ["--ledger", str(self.ledger), "--socket", str(self.socket), *self.users]
        words += [] if self.ledger.exists() else ["--new-ledger"]
        env = os.environ | {
            "PYTHONPATH": f"{ROOT}:{sysconfig.get_paths()['purelib']}",
            "TMPDIR": tempfile.gettempdir(),
        }
        env = watching(env, self.own) if self.watched else env
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def well(self) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return status(self.socket)
        except ConfideError:
            return None

    def below(self) -> list[psutil.Process]:
        assert self.process is not None
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """The machine dies: resident, gateway and what keeps them, all at once."""
        assert self.process is not None
        everybody = self.below()
        self.process.kill()
        for process in everybody:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(everybody, timeout=30)

    def stop(self) -> int:
        """As an administrator ends it; nothing of it is left."""
        assert self.process is not None
        everybody = self.below()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(100)
        finally:
            for left in everybody:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            self.process.kill()
            self.process.wait()

    def journal(self, event: str) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.startswith("{")]
        return [row for row in rows if row["event"] == event]

    def booked(self, run: str) -> list[tuple[int, str]]:
        """What a copy of the ledger says of a run: round and state, in order."""
        with tempfile.TemporaryDirectory() as name:
            for path in self.own.glob(f"{self.ledger.name}*"):
                shutil.copy(path, name)
            with Ledger.open(Path(name) / self.ledger.name, create=False) as ledger:
                payloads = [entry.payload for entry in ledger.entries()]
        reserved = [p for p in payloads if p["state"] == "reserved" and p["run"] == run]
        rounds = {p["task"]: int(p["round"]) for p in reserved}
        return [(rounds[p["task"]], p["state"]) for p in payloads if p.get("task") in rounds]


class Run:
    """``confide server run`` under way, or over."""

    def __init__(
        self, place: Path, fed: Federation, name: str, scenario: Path, inside: Sequence[str] = ()
    ) -> None:
        self.out = place / "runs" / name
        self.log = place / f"{name}.log"
        words = [*inside, sys.executable, "-m", "confide", "server", "run", str(scenario)]
        words += ["--federation", str(fed.folder), "--wait", "60", "--json"]
        words += ["--set", f"run.out={self.out}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=place)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def folder(self) -> Path:
        (found,) = (path for path in self.out.iterdir() if path.is_dir())
        return found

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds so far."""
        found = list(self.out.glob("*/metrics.jsonl"))
        return rounds_of(found[0].parent) if found else []

    def wait_round(self, number: int, seconds: float = 200) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.said
            return len(self.rounds()) >= number

        wait_for(there, seconds)

    def end(self, seconds: float = 300) -> Path:
        """The run folder, when all went well."""
        assert self.process.wait(seconds) == 0, self.said
        return self.folder

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line))["event"] == "round"]


def settings(model: Path | str, public: Path, **changes: Any) -> dict[str, Any]:
    """Of a run in which every record is in every step, so that nothing but noise is drawn."""
    chosen = {"train__batch": 64, "round__count": 2, "round__min_holders": 2, **changes}
    flat = tiny.config(Path(model), public, public, **chosen)
    return {key: value for key, value in flat.items() if key != "run.out"}


def write_scenario(path: Path, config: dict[str, Any]) -> Path:
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in config.items()))
    return path


@dataclass
class Fleet:
    """The coordinator's folder, its holders by name, and the runs so far; ``inside`` is what its
    commands are run by where it is a machine apart; ``words`` is where sums are kept."""

    place: Path
    fed: Federation
    model: Path | str
    holders: dict[str, Member]
    inside: Sequence[str] = ()
    words: Path | None = None
    done: dict[str, Path] = field(default_factory=dict)

    @property
    def public(self) -> Path:
        return self.place / "public"

    def begin(self, name: str, **changes: Any) -> Run:
        """Start a run; the caller ends it."""
        config = settings(self.model, self.public, **changes)
        scenario = write_scenario(self.place / f"{name}.toml", config)
        return Run(self.place, self.fed, name, scenario, self.inside)

    def run(self, name: str, **changes: Any) -> Path:
        """A run from its start to its report; done once, whichever test asks first."""
        if name not in self.done:
            run = self.begin(name, **changes)
            try:
                self.done[name] = run.end()
            finally:
                run.stop()
        return self.done[name]

    def check_no_marker(self) -> None:
        """In what holders said on the wire, logged, and in all that the coordinator has."""
        marker = re.compile(MARKER.encode(), re.IGNORECASE)
        seen = 0
        for name, holder in self.holders.items():
            assert len(set(re.findall(rb"zqmarker\w\d+", holder.data.read_bytes()))) == 3 * RECORDS
            sent = bytes(holder.wire.sent)
            assert name.encode() in sent, "an update names its holder: it can be read here"
            assert marker.search(sent) is None
            logged = holder.log.read_text(encoding="utf-8").splitlines()
            # What is said before the first line of JSON is for the administrator's eyes.
            assert not [line for line in logged if line[:1] == "{" and MARKER in line.lower()]
        for folder in (self.fed.folder, self.place / "runs"):
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    seen += 1
                    assert marker.search(path.read_bytes()) is None, path
        assert seen > 40

    def connected(self) -> bool:
        if not self.inside:
            return collect(self.fed).connected == len(self.holders)
        words = [sys.executable, "-m", "confide", "server", "status", str(self.fed.folder)]
        said = subprocess.run(
            [*self.inside, *words, "--json"], capture_output=True, text=True, check=False
        ).stdout
        return bool(said) and json.loads(said)["connected"] == len(self.holders)


@contextmanager
def a_fleet(
    host: str = "localhost",
    inside: Sequence[str] = (),
    elsewhere: Mapping[str, Sequence[str]] | None = None,
    model: str | None = None,
    texts: Mapping[str, Path] | None = None,
    *,
    enrolled: bool = False,
    watched: bool = False,
) -> Iterator[Fleet]:
    """A server and its holders, connected; nothing of them is left afterwards.

    Args:
        inside: what the coordinator's commands are run by.
        elsewhere: what those of each holder are; without it there are three, on wires.
        model: the base model's name; a tiny one is made without it.
        texts: a file for each of the three; it is text full of markers without it.
        enrolled: holders made their own keys, and take part in secure sums of three, of whom one
            may collude.
        watched: nobody adds noise, and the words of secure sums are kept, by what is in the
            folder of that name.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as ending:
        place = Path(name)
        place.chmod(0o755)
        python: Path | None = Path(sys.executable)
        if os.geteuid() == 0:
            python = tools_for_everybody(place)
        if python is None:
            pytest.skip("root needs a Python that another user can run")
        base = model or tiny.save_model(place / "model")
        if isinstance(base, Path):
            for file in base.iterdir():
                file.chmod(0o644)  # weights are saved for their owner alone
        tiny.write_jsonl(place / "public" / "public.jsonl", tiny.rows(40, seed=1000))
        port, inner = free_ports(2)
        names = tuple(elsewhere) if elsewhere else HOLDERS
        fed = work.provision(
            place / "fed",
            holders=0 if enrolled else len(names),
            host=host,
            port=port,
            superlink_port=inner,
        )
        holders = {
            name: Member(
                place,
                fed,
                name,
                base,
                str(python),
                inside=elsewhere[name] if elsewhere else None,
                text=texts[name] if texts else None,
                enrols=enrolled,
            )
            for name in names
        }
        for holder in holders.values():
            fed = holder.enrol(fed) if enrolled else fed
            if elsewhere is None:
                holder.put_wire(fed)
                ending.callback(holder.wire.close)
        for holder in holders.values() if enrolled else ():
            holder.more = f'roster = "sha256:{fed.roster.digest}"\nopeners = {list(names)}\n'
            holder.allow()
        words = place / "opened" if watched else None
        if words:
            words.mkdir()
        env = watching(os.environ, words) if words else None
        ending.enter_context(server(fed.folder, inside, env))
        for holder in holders.values():
            holder.watched = watched
            holder.start()
            ending.callback(holder.stop)
        made = Fleet(place=place, fed=fed, model=base, holders=holders, inside=inside, words=words)
        wait_for(lambda: all(holder.well() for holder in holders.values()), 200)
        wait_for(made.connected, 200)
        yield made
