"""The SuperLink's nodes follow federation.toml; Flower is played by a table of nodes."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.machine.kit import fingerprint
from confide.common.machine.paths import write_public
from confide.server.deploy import flower
from confide.server.deploy.federation import Federation, Holder
from confide.server.deploy.members import follow, members, names, names_here


class SuperLink:
    """Nodes by number, each with its key; a key is taken once, as Flower does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: dict[int, tuple[bytes, str]] = {}
        self.fails = False
        monkeypatch.setattr(flower, "nodes", self.list)
        monkeypatch.setattr(flower, "register", self.register)
        monkeypatch.setattr(flower, "unregister", self.unregister)

    def list(self, federation: Federation) -> list[flower.Node]:
        return [flower.Node(id=n, status=status) for n, (_, status) in self.nodes.items()]

    def register(self, federation: Federation, name: str) -> int:
        key = federation.public_key(name).read_bytes()
        if key in {known for known, _ in self.nodes.values()}:
            raise ConfideError("federation.key-used", "")
        number = 100 + len(self.nodes)
        self.nodes[number] = (key, "registered")
        return number

    def unregister(self, federation: Federation, node: int) -> None:
        if self.fails:
            raise ConfideError("server.down", "")
        self.nodes[node] = (self.nodes[node][0], "unregistered")

    def let_in(self) -> set[bytes]:
        return {key for key, status in self.nodes.values() if status != "unregistered"}


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    return SuperLink(monkeypatch)


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    empty = Federation(
        folder=tmp_path / "fed", host="localhost", port=1, superlink_port=2, bundle="0" * 64
    )
    for name in ("north", "south"):
        empty = with_key(empty, name, f"key of {name}")
    return empty


def with_key(federation: Federation, name: str, key: str) -> Federation:
    path = federation.public_key(name)
    write_public(path, key.encode())
    return federation.with_holder(Holder(name=name, key=fingerprint(path), expires=date.max))


def did(federation: Federation) -> list[tuple[str, str]]:
    return [(change.what, change.name) for change in follow(federation)]


def test_who_may_connect_is_registered_once(superlink: SuperLink, fed: Federation) -> None:
    assert did(fed) == [("registered", "north"), ("registered", "south")]
    assert superlink.let_in() == {b"key of north", b"key of south"}
    assert names(fed) == {100: "north", 101: "south"}
    assert did(fed) == []


def test_who_may_no_longer_is_shut_out(superlink: SuperLink, fed: Federation) -> None:
    follow(fed)
    south = fed.holders["south"]
    for gone in (replace(south, revoked=True), replace(south, expires=date(2020, 1, 1))):
        superlink.nodes.clear()
        follow(fed)
        assert did(fed.with_holder(gone)) == [("shut-out", "south")]
        assert superlink.let_in() == {b"key of north"}


def test_a_renewed_key_takes_the_place_of_the_old_one(
    superlink: SuperLink, fed: Federation
) -> None:
    follow(fed)
    changed = with_key(fed, "south", "a newer key")
    assert did(changed) == [("shut-out", "south"), ("registered", "south")]
    assert superlink.let_in() == {b"key of north", b"a newer key"}


def test_a_node_that_nobody_here_registered_is_shut_out(
    superlink: SuperLink, fed: Federation
) -> None:
    follow(fed)
    superlink.nodes[7] = (b"somebody's", "online")
    assert did(fed) == [("shut-out", "node-7")]
    assert b"somebody's" not in superlink.let_in()


def test_with_the_superlinks_database_lost_everybody_is_registered_anew(
    superlink: SuperLink, fed: Federation
) -> None:
    follow(fed)
    superlink.nodes.clear()
    assert did(fed) == [("registered", "north"), ("registered", "south")]
    assert len(members(fed)) == 2


def test_a_key_that_flower_knew_before_is_told_and_keeps_nobody_else_out(
    superlink: SuperLink, fed: Federation
) -> None:
    superlink.nodes[7] = (b"key of north", "unregistered")
    changes = follow(fed)
    assert [(c.what, c.name, c.code) for c in changes] == [
        ("not-registered", "north", "federation.key-used"),
        ("registered", "south", ""),
    ]


def test_a_key_file_that_is_another_is_never_registered(
    superlink: SuperLink, fed: Federation
) -> None:
    write_public(fed.public_key("north"), b"somebody else's key")
    assert [(c.name, c.code) for c in follow(fed)] == [("north", "federation.key"), ("south", "")]
    assert superlink.let_in() == {b"key of south"}


def test_as_long_as_somebody_cannot_be_shut_out_nobody_is_let_in(
    superlink: SuperLink, fed: Federation
) -> None:
    follow(fed.with_holder(replace(fed.holders["north"], revoked=True)))
    superlink.fails = True
    with pytest.raises(ConfideError) as caught:
        follow(fed.with_holder(replace(fed.holders["south"], revoked=True)))
    assert caught.value.code == "server.down"
    assert superlink.let_in() == {b"key of south"}
    assert [member.name for member in members(fed)] == ["south"], "it is tried again"


def test_a_serverapp_knows_the_names_of_the_server_that_started_it(
    superlink: SuperLink, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(flower.FEDERATION, raising=False)
    assert names_here() is None
    fed.save()
    monkeypatch.setenv(flower.FEDERATION, flower.environment(fed)[flower.FEDERATION])
    known = names_here()
    assert known is not None
    assert known() == {}
    follow(fed)
    assert known() == {100: "north", 101: "south"}
    follow(with_key(fed, "south", "a newer key"))
    assert known() == {100: "north", 102: "south"}
