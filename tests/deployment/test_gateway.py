"""Gateways against a real coordinator, by TLS and node authentication, in one run.

Its bundle is hostile: it leaves a marker where it runs, and reads what it can. One holder has not
pinned it; one has, and relays to a real resident; one has, as another user than the text's.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.cli.build import build_fab_from_disk

from confide.client.site.join import status
from confide.common.wire.messages import Update, reply_from_bytes, request_to_bytes
from confide.server.deploy.keys import write_ca
from tests.client.marked import PLACE_MARKER
from tests.deployment.conftest import (
    ROOT,
    Coordinator,
    free_port,
    tools_for_everybody,
    wait_for,
    write_bundle,
)
from tests.deployment.house import House

pytestmark = pytest.mark.timeout(400)

MOST_SECONDS = 3.0  # a message's share of processor time at the gateway
SERVER = """
import json, time
from pathlib import Path
from flwr.app import Message
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import ServerApp
from confide.common.wire.messages import (
    reply_from_records, reply_to_bytes, request_from_bytes, request_to_records
)

app = ServerApp()

@app.main()
def main(grid, context):
    run = context.run_config
    while len(nodes := list(grid.get_node_ids())) < run["nodes"]:
        time.sleep(0.2)
    task = request_from_bytes(Path(run["task"]).read_bytes())
    content = request_to_records(task)
    asked = [Message(content=content, message_type="train", dst_node_id=n) for n in nodes]
    told = []
    for reply in grid.send_and_receive(asked, timeout=300):
        if reply.has_error():
            told.append({"error": reply.error.reason})
            continue
        found = reply.content.pop("found")
        whole = recorddict_to_proto(reply.content).SerializeToString()
        reply = reply_to_bytes(reply_from_records(reply.content))
        told.append({**json.loads(found["json"]), "reply": reply.hex(), "whole": whole.hex()})
    Path(run["out"]).write_text(json.dumps(told))
"""
CLIENT = """
import json, os, sys, time
from pathlib import Path
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp

Path("MARKS", f"{os.getuid()}-{os.getpid()}").touch()
app = ClientApp()

def tried(path):
    try:
        return "read " + repr(os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 20))
    except OSError as error:
        return type(error).__name__

@app.train()
def train(message, context):
    from confide.client.app import app as ours

    reply = ours(message, context)
    found = {"socket": context.node_config["socket"], "torch": "torch" in sys.modules}
    found["cpu"] = sum(os.times()[:2])
    found["tried"] = {path: tried(path) for path in json.loads(context.run_config["paths"])}
    found["env"] = sorted(os.environ)
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line, state = (place / "cmdline").read_bytes(), (place / "status").read_text()
        except OSError:
            continue
        if b"confide.client.site.supernode" in line and f"Uid:\\t{os.getuid()}\\t" in state:
            for number in range(3, 12):
                found["tried"][f"file {number}"] = tried(place / "fd" / str(number))
    reply.content["found"] = ConfigRecord({"json": json.dumps(found)})
    return reply
"""


class Federation:
    """A coordinator, its holders' gateways, and what came of the one run."""

    def __init__(self, coordinator: Coordinator, house: House, open_place: Path) -> None:
        self.coordinator = coordinator
        self.house = house
        self.marks = open_place / "marks"
        self.marks.mkdir()
        self.marks.chmod(0o777)
        self.gateways: dict[str, subprocess.Popen[bytes]] = {}
        self.python = tools_for_everybody(open_place) if os.geteuid() == 0 else None
        self.names = ["stranger", "ward"] + ["forced"] * (self.python is not None)

    def run(self) -> list[dict[str, Any]]:
        folder = self.coordinator.folder
        (folder / "task").write_bytes(request_to_bytes(self.house.place.task()))
        secret = [str(self.house.place.data), str(folder / "forced" / "node.key")]
        app = write_bundle(
            folder / "app",
            CLIENT.replace("MARKS", str(self.marks)),
            SERVER,
            {"out": str(folder / "out"), "task": str(folder / "task"), "paths": ""},
        )
        settings = (app / "pyproject.toml").read_text()
        settings = settings.replace('paths = ""', f"paths = '{json.dumps(secret)}'")
        (app / "pyproject.toml").write_text(f"{settings}nodes = {len(self.names)}\n")
        digest = sha256(build_fab_from_disk(app)).hexdigest()
        pins = {"stranger": "a" * 64, "ward": digest, "forced": digest}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: self.coordinator.kit(name, pins[name]), self.names))
        for name in self.names:
            self.start(name)
        self.coordinator.flwr("run", str(app), "here")
        wait_for((folder / "out").exists, 200)
        return list(json.loads((folder / "out").read_text()))

    def start(self, name: str) -> None:
        folder = self.coordinator.folder
        forced = name == "forced"
        packages = sysconfig.get_paths()["purelib"]
        command = [str(self.python) if forced else sys.executable, "-P", "-m", "confide", "client"]
        command += ["gateway", str(folder / name), "--socket"]
        command += [str(self.house.socket) if name == "ward" else f"/nowhere/{name}"]
        command += ["--user", "nobody"] if forced else []
        env = self.coordinator.env | {"A_TOKEN": "secret"}
        env |= {"PYTHONPATH": f"{ROOT}:{packages}", "TMPDIR": tempfile.gettempdir()}
        with (folder / f"{name}.log").open("wb") as log:
            self.gateways[name] = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def said(self, name: str) -> list[dict[str, Any]]:
        lines = (self.coordinator.folder / f"{name}.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def stop(self) -> dict[str, int]:
        for process in self.gateways.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(30) for name, process in self.gateways.items()}


@pytest.fixture(scope="module")
def federation(
    coordinator: Coordinator, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[tuple[Federation, list[dict[str, Any]]]]:
    house = House(tmp_path_factory.mktemp("ward"), tiny_model)
    with tempfile.TemporaryDirectory() as open_place:
        Path(open_place).chmod(0o755)
        made = Federation(coordinator, house, Path(open_place))
        try:
            house.start()
            yield made, made.run()
        finally:
            made.stop()
            house.stop()


def of(told: list[dict[str, Any]], key: str, part: str) -> dict[str, Any]:
    (found,) = [one for one in told if part in str(one.get(key, ""))]
    return found


def test_a_bundle_that_is_not_pinned_is_never_executed_and_its_code_arrives(
    federation: tuple[Federation, list[dict[str, Any]]],
) -> None:
    made, told = federation
    assert len(told) == len(made.names)
    assert [one["error"] for one in told if "error" in one] == ["bundle.not-pinned"]
    assert len(list(made.marks.iterdir())) == len(made.names) - 1
    said = [line.get("said", "") for line in made.said("stranger")]
    assert any("refused [bundle.not-pinned]" in line for line in said)
    assert not any("Successfully installed" in line for line in said)


def test_a_pinned_one_brings_the_residents_update_quickly_and_without_torch(
    federation: tuple[Federation, list[dict[str, Any]]],
) -> None:
    made, told = federation
    found = of(told, "socket", str(made.house.socket))
    update = reply_from_bytes(bytes.fromhex(found["reply"]))
    assert isinstance(update, Update)
    assert update.holder == "ward"
    assert made.house.ask(made.house.place.task()) == update
    assert not found["torch"]
    assert found["cpu"] < MOST_SECONDS
    assert PLACE_MARKER.search(bytes.fromhex(found["whole"])) is None


def test_what_a_bundle_finds_in_its_environment_is_a_short_list(
    federation: tuple[Federation, list[dict[str, Any]]],
) -> None:
    made, told = federation
    names = of(told, "socket", str(made.house.socket))["env"]
    assert "A_TOKEN" not in names
    assert "CONFIDE_BUNDLES" not in names
    assert {"FLWR_HOME", "PATH"} <= set(names)


def test_forced_past_the_pin_it_finds_no_text_and_no_key(
    federation: tuple[Federation, list[dict[str, Any]]],
) -> None:
    made, told = federation
    if "forced" not in made.names:
        pytest.skip("this needs root, and a Python that another user can run")
    found = of(told, "socket", "/nowhere/forced")
    assert set(found["tried"]) >= {str(made.house.place.data), "file 3", "file 11"}
    assert set(found["tried"].values()) == {"PermissionError"}
    assert [
        path for path in made.marks.iterdir() if path.stat().st_uid == pwd.getpwnam("nobody")[2]
    ]
    reply = reply_from_bytes(bytes.fromhex(found["reply"]))
    assert getattr(reply, "code", "") == "resident.unreachable"


def test_a_gateway_ends_well_with_all_below_it_and_its_log_is_json(
    federation: tuple[Federation, list[dict[str, Any]]],
) -> None:
    made, _ = federation
    assert set(made.stop().values()) == {0}
    for name in made.names:
        lines = made.said(name)
        assert lines[0]["event"] == "start"
        assert (lines[-1]["event"], lines[-1]["asked"]) == ("stop", True)


def test_the_status_says_why_a_holder_is_not_connected(
    federation: tuple[Federation, list[dict[str, Any]]],
) -> None:
    """F18: a revoked holder's gateway is started again for ever, and all seemed well."""
    made, _ = federation
    kit, socket = made.coordinator.folder / "ward", made.house.socket
    stopped = status(socket)["connection"]
    assert (stopped["connected"], stopped["code"]) == (False, "gateway.stopped")
    made.start("ward")
    wait_for(lambda: status(socket)["connection"]["connected"])
    assert exit_of_status(socket) == (0, "yes")
    began = time.time()
    made.coordinator.shut_out(kit / "node.pub")
    assert made.gateways["ward"].wait(60) == 1
    told = status(socket)["connection"]
    assert (told["connected"], told["code"]) == (False, "connection.key")
    assert told["since"] >= int(began)
    assert exit_of_status(socket) == (1, "NO")
    text = (kit / "kit.toml").read_text()
    nobody = text.replace(f":{made.coordinator.port}", f":{free_port()}")
    (kit / "kit.toml").write_text(nobody)
    check_told(made, "connection.no-answer")
    (kit / "kit.toml").write_text(text.replace("2999", "2020"))
    check_told(made, "kit.expired")
    (kit / "kit.toml").write_text(text)
    write_ca(kit / "other.key", kit / "ca.crt", "another")
    check_told(made, "connection.certificate")
    assert status(socket)["connection"]["since"] == told["since"], "never connected since"


def check_told(made: Federation, code: str) -> None:
    """What a gateway that is started now tells the resident; killed, it leaves nothing behind."""
    made.start("ward")
    gateway = made.gateways["ward"]
    below: list[psutil.Process] = []
    try:
        wait_for(lambda: status(made.house.socket)["connection"]["code"] == code)
        if gateway.poll() is None:
            below = psutil.Process(gateway.pid).children(recursive=True)
    finally:
        gateway.kill()
        gateway.wait()
    _, left = psutil.wait_procs(below, timeout=30)
    assert left == []


def exit_of_status(socket: Path) -> tuple[int, str]:
    """The exit status of ``client status``, and its first word on the connection."""
    words = [sys.executable, "-m", "confide", "client", "status", str(socket)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    (said,) = re.findall(r"^connected +(\w+),", done.stdout, re.MULTILINE)
    return done.returncode, said
