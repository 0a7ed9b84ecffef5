"""Containers and units, as far as they can be checked without an engine that runs them.

Docker and an init system are not there where the tests run: what is looked at is what the files
say, and that the commands in them exist. ``systemd-analyze`` reads the units where it is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

RESIDENT, GATEWAY, SERVER = "10001:10001", "10002:10002", "10003:10003"
COMPOSE = ("compose.holder.yaml", "compose.federation.yaml")
UNITS = ("confide-coordinator", "confide-resident", "confide-gateway")
MOST_EXPOSED = 20  # of 100, as systemd-analyze counts; an unlocked service has 96


@pytest.fixture(scope="module")
def deploy(root: Path) -> Path:
    return root / "deploy"


def services(deploy: Path, name: str) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = yaml.safe_load((deploy / name).read_text())["services"]
    return found


def every_service(deploy: Path) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (f"{file}:{name}", service)
        for file in COMPOSE
        for name, service in services(deploy, file).items()
    ]


def test_there_is_a_holder_alone_and_a_federation_of_three(deploy: Path) -> None:
    assert sorted(services(deploy, "compose.holder.yaml")) == ["gateway", "resident"]
    pairs = [f"{role}-{number}" for role in ("gateway", "resident") for number in (1, 2, 3)]
    assert sorted(services(deploy, "compose.federation.yaml")) == ["coordinator", *pairs]


def test_no_container_is_root_or_can_write_to_its_system_or_gain_a_right(deploy: Path) -> None:
    for name, service in every_service(deploy):
        user = {"resident": RESIDENT, "gateway": GATEWAY}.get(name.split(":")[1].split("-")[0])
        assert service["user"] == (user or SERVER), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "noexec" in service["tmpfs"][0], name
        assert "privileged" not in service, name
        assert "docker.sock" not in str(service), name


def test_a_resident_has_no_network_and_what_it_reads_is_read_only(deploy: Path) -> None:
    residents = [(n, s) for n, s in every_service(deploy) if ":resident" in n]
    assert len(residents) == 4
    for name, service in residents:
        assert service["network_mode"] == "none", name
        assert {"networks", "ports", "expose", "links"}.isdisjoint(service), name
        writable = {v.split(":")[1] for v in service["volumes"] if not v.endswith(":ro")}
        assert writable == {"/ledger", "/run/confide"}, name


def test_a_gateway_has_no_text_no_ledger_and_listens_nowhere(deploy: Path) -> None:
    gateways = [(n, s) for n, s in every_service(deploy) if ":gateway" in n]
    assert len(gateways) == 4
    for name, service in gateways:
        assert {v.split(":")[-1] for v in service["volumes"] if "/kit" in v} == {"ro"}, name
        targets = [v.removesuffix(":ro").split(":")[-1] for v in service["volumes"]]
        assert targets == ["/kit", "/run/confide"], name
        assert {"ports", "expose"}.isdisjoint(service), name
        assert service["group_add"] == ["10001"], "the group of the socket, and none else"


def test_two_holders_share_nothing(deploy: Path) -> None:
    found = services(deploy, "compose.federation.yaml")
    for number in (1, 2, 3):
        for role in ("resident", "gateway"):
            volumes = [v for v in found[f"{role}-{number}"]["volumes"] if "/models" not in v]
            own = [v for v in volumes if re.search(rf"(holder|ledger|socket)-{number}", v)]
            assert volumes == own


def test_the_commands_in_the_files_exist(deploy: Path) -> None:
    """Every option of every command is one that its ``--help`` shows."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for name, service in every_service(deploy):
        if "command" in service:
            words = [str(word) for word in service["command"]]
            options = {word.split("=")[0] for word in words if word.startswith("--")}
            wanted.setdefault(("client", words[0]), set()).update(options)
        else:
            assert name.endswith("coordinator"), "which has its command from the image"
    for unit in UNITS:
        line = setting(deploy, unit, "ExecStart").split()[1:]
        wanted.setdefault((line[0], line[1]), set()).update(w for w in line if w[:2] == "--")
    assert set(wanted) == {("client", "resident"), ("client", "gateway"), ("server", "start")}
    for (group, command), options in wanted.items():
        said = help_of(group, command)
        for option in options:
            assert option in said, f"confide {group} {command} {option}"


def help_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "confide", *words, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    )
    return done.stdout


def test_the_image_runs_as_somebody_without_rights_and_installs_by_the_pins(deploy: Path) -> None:
    text = (deploy / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    users = {stage.split()[2]: re.findall(r"^USER (.+)$", stage, re.MULTILINE) for stage in stages}
    assert users["holder"] == [RESIDENT]
    assert users["coordinator"] == [SERVER]
    for install in re.findall(r"pip install[^\n]*", text):
        assert "-c /src/constraints.txt" in install
    assert "HF_HUB_OFFLINE=1" in text
    assert not re.search(r"^ADD |curl|wget|chmod 777", text, re.MULTILINE)


def test_the_images_context_is_the_code_alone(root: Path) -> None:
    lines = [
        line
        for line in (root / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*", "everything is left out that is not named"
    named = {line[1:] for line in lines if line.startswith("!")}
    assert {"confide", "common", "client", "server", "simulations"} < named
    assert all((root / name).exists() for name in named)
    assert named.isdisjoint({".git", "runs", "tests", ".venv", "deploy"})


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_locked_down(deploy: Path, unit: str) -> None:
    assert setting(deploy, unit, "User") not in ("", "root")
    assert setting(deploy, unit, "ProtectSystem") == "strict"
    assert setting(deploy, unit, "NoNewPrivileges") == "yes"
    assert setting(deploy, unit, "CapabilityBoundingSet") == ""
    assert setting(deploy, unit, "Restart") == "always"


def test_the_residents_unit_has_no_network_and_the_gateways_no_text(deploy: Path) -> None:
    assert setting(deploy, "confide-resident", "PrivateNetwork") == "yes"
    assert setting(deploy, "confide-resident", "RestrictAddressFamilies") == "AF_UNIX"
    hidden = setting(deploy, "confide-gateway", "InaccessiblePaths").split()
    assert hidden == ["-/srv/confide", "-/var/lib/confide"]
    users = {setting(deploy, unit, "User") for unit in UNITS}
    assert len(users) == len(UNITS), "three users"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_reads_the_unit_without_a_word(deploy: Path, tmp_path: Path, unit: str) -> None:
    text = (deploy / "systemd" / f"{unit}.service").read_text()
    copy = tmp_path / f"{unit}.service"
    copy.write_text(text.replace("/opt/confide/bin/confide", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    words = [line for line in done.stderr.splitlines() if unit in line]
    assert [line for line in words if "confide-resident.service" not in line] == []
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert exposed.returncode == 0, exposed.stdout.splitlines()[-1:]


def setting(deploy: Path, unit: str, key: str) -> str:
    """The value of a key in a unit, continued lines joined."""
    text = (deploy / "systemd" / f"{unit}.service").read_text().replace("\\\n", " ")
    found = re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)
    assert len(found) == 1, f"{unit}: {key}"
    return str(found[0])
