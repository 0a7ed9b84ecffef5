"""What the gateway hands to Flower and to a bundle: public options, a key, few variables."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)
from flwr.supercore.cli.flower_superexec import _parse_args as executor_options
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode as supernode_options

from confide.client.site.gateway import (
    Gateway,
    environment,
    executor_command,
    run,
    supernode_command,
)
from confide.common.errors import ConfideError
from confide.common.machine.kit import Kit, in_flowers_form

FILES = {"ca": 11, "key": 12, "secret": 13}


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    kit = Kit(
        folder=tmp_path,
        name="ward",
        coordinator="localhost",
        fleet="fl.example.org:443",
        bundles=("a" * 64,),
        expires=date(2999, 1, 1),
    )
    return Gateway(kit=kit, socket=tmp_path / "socket")


def test_flower_takes_our_options_and_understands_them_as_meant(gateway: Gateway) -> None:
    words = supernode_command(gateway, FILES, 4000)
    assert words[:4] == [sys.executable, "-P", "-m", "confide.client.site.supernode"]
    read = supernode_options().parse_args(words[4:])
    assert (read.superlink, read.insecure) == ("fl.example.org:443", False)
    assert (read.root_certificates, read.auth_supernode_private_key) == (
        "/proc/self/fd/11",
        "/proc/self/fd/12",
    )
    assert (read.isolation, read.superexec_auth_secret_file) == ("process", "/proc/self/fd/13")
    assert (read.host, read.port, read.max_retries, read.max_wait_time) == (
        "127.0.0.1",
        4000,
        None,
        None,
    )
    assert not read.runtime_dependency_install
    assert read.node_config == f'socket="{gateway.socket}"'


def test_the_executor_takes_tasks_by_the_secret_and_installs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = executor_command(FILES, 4000)
    monkeypatch.setattr(sys, "argv", words)
    read = executor_options().parse_args()
    assert read.runtime_api_address == "127.0.0.1:4000"
    assert read.superexec_auth_secret_file == "/proc/self/fd/13"
    assert read.parent_pid == os.getpid()
    assert not read.runtime_dependency_install


def test_its_two_processes_meet_where_there_is_no_ipv4(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway
) -> None:
    """docker-nginx-unprivileged#35's kind, the other way round."""
    monkeypatch.setattr(
        "confide.common.machine.processes.can_bind", lambda _, address: address == "::1"
    )
    words = supernode_command(gateway, FILES, 4000)
    read = supernode_options().parse_args(words[4:])
    assert (read.host, read.port) == ("::1", 4000)
    monkeypatch.setattr(sys, "argv", executor_command(FILES, 4000))
    assert executor_options().parse_args().runtime_api_address == "[::1]:4000"


def test_a_bundle_inherits_nothing_but_a_short_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "CONFIDE_BUNDLES", "LD_PRELOAD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("https_proxy", "http://lower:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    env = environment(tmp_path)
    assert env["https_proxy"] == "http://lower:3128"
    assert env["NO_PROXY"].split(",")[:2] == ["intranet.example", "127.0.0.1"]
    assert "secret" not in env.values()
    assert env["HTTPS_PROXY"] == "http://proxy:3128"
    assert env["FLWR_HOME"] == env["HOME"] == str(tmp_path)
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_key_in_any_usual_form_becomes_the_one_that_flower_reads(
    tmp_path: Path, form: PrivateFormat
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    for shape in (form, PrivateFormat.OpenSSH):
        (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, shape, NoEncryption()))
        read = load_ssh_private_key(in_flowers_form(tmp_path / "key"), None)
        assert isinstance(read, ec.EllipticCurvePrivateKey)
        assert read.private_numbers() == key.private_numbers()


def test_what_is_no_such_key_is_refused(tmp_path: Path) -> None:
    curve = ec.generate_private_key(ec.SECP384R1())
    locked = BestAvailableEncryption(b"word")
    other = ed25519.Ed25519PrivateKey.generate()
    for raw in (
        b"",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nx",
        curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked),
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ):
        (tmp_path / "key").write_bytes(raw)
        with pytest.raises(ConfideError) as caught:
            in_flowers_form(tmp_path / "key")
        assert caught.value.code == "kit.key"


def test_an_expired_kit_connects_to_nobody(gateway: Gateway) -> None:
    old = dataclasses.replace(gateway.kit, expires=date(2020, 1, 1))
    with pytest.raises(ConfideError) as caught:
        run(dataclasses.replace(gateway, kit=old))
    assert caught.value.code == "kit.expired"


def test_a_socket_that_flowers_configuration_cannot_name_is_refused(gateway: Gateway) -> None:
    for path in ('/a"b', "/a\\b"):
        with pytest.raises(ConfideError) as caught:
            supernode_command(dataclasses.replace(gateway, socket=Path(path)), FILES, 1)
        assert caught.value.code == "gateway.socket"


def test_a_supernode_that_flower_gives_up_on_ends_its_process(root: Path) -> None:
    """It leaves a server's thread behind, which would keep the process alive without work."""
    code = (
        "import threading, time\n"
        "import flwr.supernode.cli as cli\n"
        "def lost(): threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "cli.flower_supernode = lost\n"
        "from confide.client.site.supernode import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=30, check=False)
    assert done.returncode == 1
