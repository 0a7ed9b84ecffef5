"""What must be there to join, and how a process is kept alive."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from confide.client.site import join as join_module
from confide.client.site.budget import make_ledger
from confide.client.site.join import (
    Joining,
    check_access,
    gateway_command,
    lacks_ledger,
    on_new_ledger,
    resident_command,
    run,
    socket_of,
    status,
)
from confide.client.site.journal import Journal
from confide.client.site.users import User, as_user
from confide.common.errors import ConfideError
from confide.common.machine.kit import Kit
from tests import tiny
from tests.client.test_resident import Served

TEXT_OF = User(name="daemon", uid=1, gid=1)
NETWORK_OF = User(name="nobody", uid=65534, gid=65534)


@pytest.fixture
def joining(tmp_path: Path) -> Joining:
    return Joining(
        kit=Kit(
            folder=tmp_path / "kit",
            name="ward-7",
            coordinator="fl.example.org",
            fleet="fl.example.org:443",
            bundles=("a" * 64,),
            expires=date(2027, 1, 1),
        ),
        data=tiny.write_jsonl(tmp_path / "text.jsonl", tiny.rows(24, seed=3)),
        policy=tmp_path / "policy.toml",
        ledger=tmp_path / "text.jsonl.ledger.sqlite",
        socket=tmp_path / "run" / "socket",
    )


def test_the_commands_of_both_name_what_each_may_know(joining: Joining) -> None:
    apart = dataclasses.replace(joining, resident=TEXT_OF, gateway=NETWORK_OF, allow_network=True)
    resident, gateway = " ".join(resident_command(apart)), " ".join(gateway_command(apart))
    assert "--name ward-7" in resident
    assert "--user daemon --for nobody --allow-network" in resident
    assert str(joining.data) not in gateway
    assert str(joining.ledger) not in gateway
    assert gateway.endswith("--user nobody")
    assert "--user" not in " ".join([*resident_command(joining), *gateway_command(joining)])


@pytest.fixture
def apart(joining: Joining, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joining]:
    """Two users, and text in a folder that both can reach."""
    monkeypatch.setattr(sys, "executable", "/bin/sh")  # the tests' own may lie in root's home
    monkeypatch.setattr(join_module, "__file__", "/bin/sh")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        data, policy = folder / "text.jsonl", folder / "policy.toml"
        for path in (data, policy):
            path.touch(mode=0o600)
        for path in (data, policy, folder):
            os.chown(path, TEXT_OF.uid, TEXT_OF.gid)
        yield dataclasses.replace(
            joining,
            data=data,
            policy=policy,
            ledger=folder / "ledger.sqlite",
            resident=TEXT_OF,
            gateway=NETWORK_OF,
        )


def refused(joining: Joining) -> str:
    with pytest.raises(ConfideError) as caught:
        check_access(joining)
    assert caught.value.hint
    return caught.value.code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as others do")
def test_text_that_the_gateways_user_could_read_stops_a_join(
    apart: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_access(apart)
    apart.data.chmod(0o604)
    assert refused(apart) == "join.text-open"
    apart.data.chmod(0o600)
    apart.ledger.touch()
    apart.ledger.chmod(0o644)
    assert refused(apart) == "join.text-open"
    apart.ledger.unlink()
    assert refused(dataclasses.replace(apart, ledger=Path("/root/ledger"))) == "join.unwritable"
    os.chown(apart.policy, 0, 0)
    assert refused(apart) == "join.unreadable"
    nowhere = dataclasses.replace(apart, data=apart.data.with_name("none"))
    with pytest.raises(ConfideError, match="There is no file"):
        check_access(nowhere)
    monkeypatch.setattr(sys, "executable", "/etc/shadow")
    assert refused(apart) == "join.python"


def test_a_ledger_that_is_not_there_is_told_with_those_that_lie_beside(joining: Joining) -> None:
    assert lacks_ledger(joining)
    joining.ledger.with_name("renamed.jsonl.ledger.sqlite").touch()
    said = "\n".join(on_new_ledger(joining))
    assert f"There is no ledger {joining.ledger}" in said
    assert "under whatever file name" in said
    assert "Beside it lie: renamed.jsonl.ledger.sqlite" in said
    make_ledger(joining.ledger)
    assert not lacks_ledger(joining)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as others do")
def test_the_residents_user_makes_the_ledger_and_not_root(apart: Joining) -> None:
    assert lacks_ledger(apart)
    as_user(apart.resident, lambda: make_ledger(apart.ledger))
    found = apart.ledger.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (TEXT_OF.uid, TEXT_OF.gid, 0o600)
    assert not lacks_ledger(apart)


def test_a_join_beside_a_resident_that_answers_starts_nothing(joining: Joining) -> None:
    served = Served(joining.socket.parent.parent)
    with pytest.raises(ConfideError) as caught:
        run(joining, Journal("join"))
    assert caught.value.code == "resident.running"
    served.stop()


def test_the_status_is_what_the_resident_says(tmp_path: Path) -> None:
    served = Served(tmp_path)
    assert status(served.path)["name"] == "ward"
    served.stop()


def test_the_socket_is_found_without_being_named(
    joining: Joining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert socket_of(joining.kit) == Path("/run/confide/ward-7/socket")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert socket_of(joining.kit) == Path("/run/user/1000/confide/ward-7/socket")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert socket_of(joining.kit) == joining.kit.folder.resolve() / "run" / "socket"


@pytest.mark.parametrize(
    ("ends", "said"),
    [("exit 3", ": it ended with status 3"), ("kill -9 $$", ": signal 9 ended it")],
)
def test_a_resident_that_dies_before_it_is_ready_is_told_with_how(
    joining: Joining, monkeypatch: pytest.MonkeyPatch, ends: str, said: str
) -> None:
    """What the kernel ends has no line of its own."""
    monkeypatch.setattr(join_module, "resident_command", lambda _: ["sh", "-c", ends])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # those of the tests stay
    with pytest.raises(ConfideError) as caught:
        run(joining, Journal("t"))
    assert (caught.value.code, caught.value.message) == (
        "join.resident",
        f"The resident did not become ready{said}.",
    )
