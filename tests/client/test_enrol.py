"""A holder makes its own keys: where they lie, whose they are, and what is given away of them."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.client.guard.policy import Policy
from confide.client.guard.sum_keys import SumKeys
from confide.client.holder import Site
from confide.client.site import resident_main
from confide.client.site.enrol import Enrolling, check_keys, check_node_key, enrol
from confide.client.site.join import Joining, check_access
from confide.client.site.users import user_named
from confide.common.errors import ConfideError
from confide.common.machine.kit import Kit, public_line, read_holder_key, write_holder_key
from confide.common.machine.paths import keys_beside
from confide.common.masking.enrolment import read_request, read_roster, roster_text
from confide.common.masking.keys import Identity, Roster, spoken
from tests import tiny

TEXT_OF, NETWORK_OF = user_named("daemon"), user_named("nobody")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")


@pytest.fixture
def enrolling(tmp_path: Path) -> Enrolling:
    """Anybody's but root's; for root, what a user of its own would do."""
    return Enrolling(
        folder=tmp_path / "kit", name="north", ledger=tmp_path / "text.jsonl.ledger.sqlite"
    )


@pytest.fixture
def apart() -> Iterator[Enrolling]:
    """Two users, and a folder of the resident's for text and ledger."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "own").mkdir(mode=0o700)
        os.chown(place / "own", TEXT_OF.uid, TEXT_OF.gid)
        yield Enrolling(
            folder=place / "kit",
            name="north",
            ledger=place / "own" / "ledger.sqlite",
            resident=TEXT_OF,
            gateway=NETWORK_OF,
        )


def secrets_of(enrolling: Enrolling) -> list[bytes]:
    """All that may be nowhere else: the signing secret in its usual forms, and the node key."""
    raw = (keys_beside(enrolling.ledger) / "identity").read_bytes()
    pem = (enrolling.folder / "node.key").read_bytes().splitlines()
    return [raw, raw.hex().encode(), base64.b64encode(raw), *pem[1:-1]]


def test_both_keys_are_for_their_owner_alone_and_the_request_has_the_public_halves(
    enrolling: Enrolling,
) -> None:
    before = os.umask(0)
    try:
        done = enrol(enrolling)
    finally:
        os.umask(before)
    keys = keys_beside(enrolling.ledger)
    for path, mode in (
        (enrolling.folder, 0o700),
        (enrolling.folder / "node.key", 0o600),
        (keys, 0o700),
        (keys / "identity", 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    request = read_request(done.request)
    own = SumKeys(keys, "north").identity.member
    assert (request.name, request.signing) == (own.name, own.signing)
    line = public_line(read_holder_key(enrolling.folder / "node.key")).decode()
    assert request.node == line == (enrolling.folder / "node.pub").read_text().strip()
    text = done.request.read_bytes() + (enrolling.folder / "node.pub").read_bytes()
    assert [secret for secret in secrets_of(enrolling) if secret in text] == []


def test_the_keys_lie_where_the_holder_looks_for_them(enrolling: Enrolling, tmp_path: Path) -> None:
    site = Site(
        name="north", data=tmp_path / "text.jsonl", ledger=enrolling.ledger, policy=Policy()
    )
    assert enrol(enrolling).keys == site.keys


def test_nothing_is_overwritten_and_a_new_folder_gets_a_new_node_key_for_the_same_signing_key(
    enrolling: Enrolling, tmp_path: Path
) -> None:
    """So a kit is renewed each year, and the roster stays as it was compared."""
    first = read_request(enrol(enrolling).request)
    before = secrets_of(enrolling)
    with pytest.raises(ConfideError) as caught:
        enrol(enrolling)
    assert caught.value.code == "enrol.exists"
    done = enrol(replace(enrolling, folder=tmp_path / "renewed"))
    second = read_request(done.request)
    assert (done.kept_node_key, done.kept_signing_key) == (False, True)
    assert second.signing == first.signing
    assert second.node != first.node
    assert secrets_of(enrolling) == before


def test_a_kit_that_came_with_a_key_keeps_it_and_gets_a_signing_key(enrolling: Enrolling) -> None:
    write_holder_key(enrolling.folder / "node.key", enrolling.folder / "node.pub")
    before = (enrolling.folder / "node.key").read_bytes()
    done = enrol(enrolling)
    assert (done.kept_node_key, done.kept_signing_key) == (True, False)
    assert (enrolling.folder / "node.key").read_bytes() == before
    assert read_request(done.request).node == (enrolling.folder / "node.pub").read_text().strip()


def test_a_request_that_was_lost_is_made_again_from_the_same_keys(enrolling: Enrolling) -> None:
    done = enrol(enrolling)
    lost = read_request(done.request)
    done.request.unlink()
    again = read_request(enrol(enrolling).request)
    assert (again.node, again.signing) == (lost.node, lost.signing)


def test_a_damaged_signing_key_is_refused_and_left_alone(enrolling: Enrolling) -> None:
    keys = enrol(enrolling).keys
    (keys / "identity").write_bytes(b"short")
    with pytest.raises(ConfideError) as caught:
        enrol(replace(enrolling, folder=enrolling.folder.with_name("other")))
    assert caught.value.code == "sum.enrolled"
    assert (keys / "identity").read_bytes() == b"short"


@pytest.mark.parametrize("name", ["", "North", "../up", "n" * 33, "nоrth", "a b"])  # noqa: RUF001
def test_a_name_that_the_coordinator_would_not_take_makes_no_key(
    enrolling: Enrolling, name: str
) -> None:
    with pytest.raises(ConfideError, match=r"enrol\.name"):
        enrol(replace(enrolling, name=name))
    assert not enrolling.folder.exists()


def test_what_cannot_be_written_is_said_before_a_key_is_made(
    enrolling: Enrolling, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfideError, match=r"enrol\.unwritable"):
        enrol(replace(enrolling, folder=tmp_path / "file" / "kit"))
    with pytest.raises(ConfideError, match=r"enrol\.unwritable"):
        enrol(replace(enrolling, ledger=tmp_path / "nowhere" / "ledger.sqlite"))
    assert not enrolling.folder.exists()


@pytest.mark.parametrize("what", ["identity", "folder", "link"])
def test_a_signing_key_that_others_could_read_is_refused_at_every_join(
    enrolling: Enrolling, what: str, tmp_path: Path
) -> None:
    keys = enrol(enrolling).keys
    check_keys(enrolling.ledger, None, None)
    if what == "identity":
        (keys / "identity").chmod(0o640)
    elif what == "folder":
        keys.chmod(0o755)
    else:
        (keys / "identity").rename(tmp_path / "elsewhere")
        (keys / "identity").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfideError) as caught:
        check_keys(enrolling.ledger, None, None)
    assert caught.value.code == "join.keys-open"
    assert "chmod -R go-rwx" in caught.value.hint


def test_neither_join_nor_a_resident_of_a_container_starts_with_an_open_signing_key(
    enrolling: Enrolling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (enrol(enrolling).keys / "identity").chmod(0o644)
    kit = Kit(
        folder=enrolling.folder,
        name="north",
        coordinator="a",
        fleet="a:1",
        bundles=(),
        expires=date(2999, 1, 1),
    )
    places = {
        "data": tmp_path / "text.jsonl",
        "policy": tmp_path / "policy.toml",
        "ledger": enrolling.ledger,
        "socket": tmp_path / "socket",
    }
    with pytest.raises(ConfideError, match=r"join\.keys-open"):
        check_access(Joining(kit=kit, **places))
    monkeypatch.setattr(resident_main, "_settle", lambda _: (None, ()))
    with pytest.raises(ConfideError, match=r"join\.keys-open"):
        resident_main.run(resident_main.Residence(name="north", **places))


@needs_root
def test_under_root_the_signing_key_is_the_residents_and_the_node_key_is_roots(
    apart: Enrolling,
) -> None:
    done = enrol(apart)
    for path in (done.keys, done.keys / "identity"):
        assert path.stat().st_uid == TEXT_OF.uid
        assert path.stat().st_mode & 0o077 == 0
    assert (apart.folder / "node.key").stat().st_uid == 0
    assert read_request(done.request).name == "north"


@needs_root
@pytest.mark.parametrize("whose", [0, NETWORK_OF.uid])
def test_under_root_a_signing_key_of_anybody_else_is_refused(apart: Enrolling, whose: int) -> None:
    keys = enrol(apart).keys
    check_keys(apart.ledger, apart.resident, apart.gateway)
    os.chown(keys / "identity", whose, -1)
    with pytest.raises(ConfideError) as caught:
        check_keys(apart.ledger, apart.resident, apart.gateway)
    assert caught.value.code == "join.keys-open"
    assert f"chown -R daemon {keys}" in caught.value.hint


@needs_root
def test_under_root_a_folder_of_anothers_is_written_as_that_other(apart: Enrolling) -> None:
    """A link that its owner put there would otherwise turn what root writes to any file."""
    victim = apart.ledger.parent.parent / "victim"
    apart.folder.mkdir()
    os.chown(apart.folder, NETWORK_OF.uid, NETWORK_OF.gid)
    (apart.folder / "node.key").symlink_to(victim)
    with pytest.raises(ConfideError, match=r"kit\.missing"):
        enrol(apart)
    (apart.folder / "node.key").unlink()
    (apart.folder / "node.pub").symlink_to(victim)
    done = enrol(apart)
    assert not victim.exists()
    for path in apart.folder.iterdir():
        assert path.lstat().st_uid == NETWORK_OF.uid
    assert done.request.is_file()


def test_a_kit_that_brought_a_key_of_its_own_is_refused(
    enrolling: Enrolling, tmp_path: Path
) -> None:
    """Who was enrolled, and is given a kit of `provision --add` without its request."""
    enrol(enrolling)
    kit = Kit(
        folder=enrolling.folder,
        name="north",
        coordinator="a",
        fleet="a:1",
        bundles=(),
        expires=date(2999, 1, 1),
    )
    check_node_key(kit)
    write_holder_key(enrolling.folder / "node.key", enrolling.folder / "node.pub")
    with pytest.raises(ConfideError, match=r"kit\.other-key"):
        check_node_key(kit)
    (enrolling.folder / "request.toml").unlink()
    check_node_key(kit)


def client(*words: object) -> Result:
    return CliRunner().invoke(build_app(), ["client", *map(str, words)])


USERS = ("--resident-user", "daemon", "--gateway-user", "nobody") if os.geteuid() == 0 else ()


def test_the_command_says_what_it_made_and_no_secret(apart: Enrolling) -> None:
    data = apart.ledger.with_name("text.jsonl")
    words = ["enrol", apart.folder, "--name", "north", "--data", data, "--ledger", apart.ledger]
    done = client(*words, *USERS)
    assert getattr(done.exception, "code", "") == "data.missing-file"
    tiny.write_jsonl(data, tiny.rows(3, seed=1))
    done = client(*words, *USERS)
    assert done.exit_code == 0, done.exception
    assert f"Give the coordinator {apart.folder / 'request.toml'}" in done.stdout
    assert [s for s in secrets_of(apart) if s in done.stdout.encode()] == []
    (apart.folder / "request.toml").unlink()
    told = json.loads(client(*words, *USERS, "--json").stdout)
    assert told == {
        "request": str(apart.folder / "request.toml"),
        "keys": str(keys_beside(apart.ledger)),
        "kept_node_key": True,
        "kept_signing_key": True,
    }


def test_enrolling_runs_no_line_of_torch() -> None:
    """It has a network, and may be root: as the resident, which imports torch behind both."""
    code = (
        "import sys, confide.client.site.enrol, confide.client.commands.enrol;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def roster_file(tmp_path: Path) -> Path:
    members = (Identity(name, Identity.new_secret()).member for name in ("north", "south"))
    path = tmp_path / "roster.toml"
    path.write_text(roster_text(Roster(members)))
    return path


def test_the_roster_is_shown_with_its_words_and_the_policys_line(
    roster_file: Path, tmp_path: Path
) -> None:
    found = read_roster(roster_file)
    done = client("roster", roster_file)
    assert done.exit_code == 0
    for part in ("north", "south", f"sha256:{found.digest}", spoken(found.digest)):
        assert part in done.stdout
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("policy.toml: ")]
    policy = tmp_path / "policy.toml"
    policy.write_text(line.removeprefix("policy.toml: ") + "\n")
    done = client("roster", roster_file, "--policy", policy)
    assert (done.exit_code, "The policy has this roster." in done.stdout) == (0, True)


def test_a_policy_without_the_roster_or_with_another_ends_with_one(
    roster_file: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    for text, says in (("", "no roster"), (f'roster = "sha256:{"0" * 64}"\n', "sha256:000")):
        policy.write_text(text)
        done = client("roster", roster_file, "--policy", policy)
        assert (done.exit_code, says in done.stdout) == (1, True)
        told = client("roster", roster_file, "--policy", policy, "--json")
        assert (told.exit_code, json.loads(told.stdout)["policy_has_it"]) == (1, False)
