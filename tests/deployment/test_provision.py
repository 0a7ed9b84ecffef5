"""Keys, certificates, kits and the bundle of a federation, without any server."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from confide.common.errors import ConfideError
from confide.common.machine.kit import read_kit
from confide.common.settings import known_keys
from confide.server.deploy import flower
from confide.server.deploy import provision as work
from confide.server.deploy.bundle import bundle_hash, check_bundle
from confide.server.deploy.federation import Federation, find_federation, load_federation
from confide.server.deploy.keys import CA_DAYS, DOOR_DAYS, write_ca

HOST = "fleet.example.org"
SECRETS = ("ca/ca.key", "door/server.key", "flower/superexec.secret", "kits/holder-1/node.key")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder = tmp_path_factory.mktemp("provision") / "hospitals"
    return work.provision(folder, holders=2, host=HOST)


@pytest.fixture
def own(tmp_path: Path, made: Federation) -> Federation:
    """A copy that a test may change."""
    return load_federation(Path(shutil.copytree(made.folder, tmp_path / "hospitals")))


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verifies(federation: Federation, name: x509.DNSName | x509.IPAddress, ca: Path) -> bool:
    leaf = certificate(federation.folder / "door" / "server.crt")
    builder = PolicyBuilder().store(Store([certificate(ca)]))
    try:
        builder.build_server_verifier(name).verify(leaf, [])
    except VerificationError:
        return False
    return True


def test_the_doors_certificate_is_good_for_the_host_and_the_loopback_and_nothing_else(
    made: Federation, tmp_path: Path
) -> None:
    for name in (HOST, "localhost"):
        assert verifies(made, x509.DNSName(name), made.ca)
    assert verifies(made, x509.IPAddress(ipaddress.ip_address("127.0.0.1")), made.ca)
    assert not verifies(made, x509.DNSName("other.example.org"), made.ca)
    write_ca(tmp_path / "other.key", tmp_path / "other.crt", made.name)
    assert not verifies(made, x509.DNSName(HOST), tmp_path / "other.crt"), "another CA"


def test_everything_has_an_end(made: Federation) -> None:
    now = datetime.now(UTC)
    for path, days in ((made.ca, CA_DAYS), (made.folder / "door" / "server.crt", DOOR_DAYS)):
        left = certificate(path).not_valid_after_utc - now
        assert timedelta(days=days - 1) < left <= timedelta(days=days)
    for holder in made.holders.values():
        assert holder.expires == now.date() + timedelta(days=work.HOLDER_DAYS)


def test_no_secret_can_be_read_by_others_and_nothing_at_all_below_the_folder(
    made: Federation,
) -> None:
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for name in SECRETS:
        assert stat.S_IMODE((made.folder / name).stat().st_mode) == 0o600, name
    keys = {path for path in made.folder.rglob("*") if path.is_file() and is_secret(path)}
    named = {made.folder / name for name in SECRETS}
    assert keys == named | {made.kit("holder-2") / "node.key"}, "a secret lies where none should"


def is_secret(path: Path) -> bool:
    return b"PRIVATE KEY" in path.read_bytes() or path.suffix == ".secret"


def test_a_careless_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = work.provision(tmp_path / "f", holders=1, host=HOST)
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.kit("holder-1") / "node.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((made.kit("holder-1") / "kit.toml").stat().st_mode) == 0o644


def test_a_kit_holds_exactly_what_a_holder_needs(made: Federation) -> None:
    kit = made.kit("holder-1")
    assert sorted(path.name for path in kit.iterdir()) == [
        "README.md",
        "ca.crt",
        "kit.toml",
        "node.key",
        "node.pub",
    ]
    assert tomllib.loads((kit / "kit.toml").read_text()) == {
        "schema": "confide-kit/1",
        "name": "holder-1",
        "coordinator": HOST,
        "fleet": f"{HOST}:8443",
        "bundles": [made.bundle],
        "expires": made.holders["holder-1"].expires.isoformat(),
    }
    assert (kit / "ca.crt").read_bytes() == made.ca.read_bytes()
    assert len((kit / "README.md").read_text().splitlines()) < 40, "one page"


def test_an_address_of_version_six_is_written_as_others_read_it(tmp_path: Path) -> None:
    made = work.provision(tmp_path / "f", holders=1, host="fd00::1")
    kit = tomllib.loads((made.kit("holder-1") / "kit.toml").read_text())
    assert (kit["coordinator"], kit["fleet"]) == ("fd00::1", "[fd00::1]:8443")


def test_each_holder_has_a_pair_of_its_own_that_flower_reads(made: Federation) -> None:
    publics = set()
    for name in made.holders:
        private = load_ssh_private_key((made.kit(name) / "node.key").read_bytes(), None)
        public = load_ssh_public_key((made.kit(name) / "node.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        assert made.public_key(name).read_bytes() == (made.kit(name) / "node.pub").read_bytes()
        publics.add(made.public_key(name).read_bytes())
    assert len(publics) == len(made.holders)


def test_what_is_written_is_read_back(made: Federation) -> None:
    assert load_federation(made.folder) == made


def test_the_commands_print_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    said = ""
    for arguments in (
        ["--holders", "1", "--host", HOST],
        ["--add", "north"],
        ["--renew", "holder-1", "--json"],
        ["--renew", "server"],
        ["--renew", "bundle"],
        ["--revoke", "north", "--json"],
    ):
        command = [sys.executable, "-m", "confide", "server", "provision", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said += done.stdout + done.stderr
    assert "north" in said
    for path in (p for p in folder.rglob("*") if p.is_file() and is_secret(p)):
        for line in path.read_text().splitlines():
            assert line not in said, f"{path} was printed"
    assert "PRIVATE" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could write into another's folder")
def test_a_folder_of_another_users_gets_no_key(tmp_path: Path) -> None:
    """Its owner could read the keys, and turn what is written to any file by a link."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 1, 1)
    with pytest.raises(ConfideError, match="belongs to another user") as caught:
        work.provision(theirs, holders=1, host=HOST)
    assert caught.value.code == "provision.write"
    assert list(theirs.iterdir()) == []
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could write for another user")
def test_root_changes_nothing_in_a_federation_of_another_users(own: Federation) -> None:
    """Its owner could put a link where root writes a key or a kit."""
    os.chown(own.folder, 1, 1)
    with pytest.raises(ConfideError) as caught:
        load_federation(own.folder)
    assert caught.value.code == "federation.owner"
    assert "runuser" in caught.value.hint
    os.chown(own.folder, 0, 0)
    assert load_federation(own.folder) == own


def test_a_federation_is_never_overwritten(own: Federation) -> None:
    before = (own.folder / "ca" / "ca.key").read_bytes()
    with pytest.raises(ConfideError) as caught:
        work.provision(own.folder, holders=2, host=HOST)
    assert caught.value.code == "provision.exists"
    assert (own.folder / "ca" / "ca.key").read_bytes() == before


def test_a_holder_is_added_with_a_kit_like_the_others(own: Federation) -> None:
    own.ca.with_name("ca.key").unlink()  # it may lie in a safe
    changed = work.add(own, "north")
    assert load_federation(own.folder) == changed
    assert list(changed.holders) == ["holder-1", "holder-2", "north"]
    assert tomllib.loads((changed.kit("north") / "kit.toml").read_text())["name"] == "north"


def test_a_renewed_holder_has_another_key_and_the_old_one_no_longer_counts(own: Federation) -> None:
    old = own.holders["holder-1"].key
    changed = work.renew(own, "holder-1")
    assert old not in {holder.key for holder in changed.active()}
    new = hashlib.sha256(changed.public_key("holder-1").read_bytes().strip()).hexdigest()
    assert changed.holders["holder-1"].key == new != old
    assert changed.holders["holder-2"] == own.holders["holder-2"]


def test_a_renewed_kit_over_the_old_one_leaves_the_policy_as_it_was(
    own: Federation, tmp_path: Path
) -> None:
    """F21: the defaults of the renewed kit took the place of what the administrator had written."""
    mine, at_coordinator = tmp_path / "kit", own.kit("holder-1")
    (at_coordinator / "policy.toml").write_text("# as an older confide gave it\n")
    shutil.copytree(at_coordinator, mine)
    (mine / "policy.toml").write_text("max-epsilon = 1.0\n")
    changed = work.renew(own, "holder-1")
    assert not (changed.kit("holder-1") / "policy.toml").exists()
    shutil.copytree(changed.kit("holder-1"), mine, dirs_exist_ok=True)
    assert (mine / "policy.toml").read_text() == "max-epsilon = 1.0\n"
    assert read_kit(mine).policy == mine / "policy.toml"
    new, old = changed.public_key("holder-1"), own.holders["holder-1"].key
    assert (mine / "node.pub").read_bytes() == new.read_bytes()
    assert hashlib.sha256(new.read_bytes().strip()).hexdigest() != old


def test_a_revoked_or_expired_holder_may_not_connect(own: Federation) -> None:
    changed = work.revoke(own, "holder-1")
    assert [holder.name for holder in changed.active()] == ["holder-2"]
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    late = changed.with_holder(replace(changed.holders["holder-2"], expires=yesterday))
    assert late.active() == []
    assert changed.holders["holder-2"].may_connect(date.max) is False


def test_the_doors_certificate_is_renewed_under_the_same_ca(own: Federation) -> None:
    path = own.folder / "door" / "server.crt"
    before = certificate(path).serial_number
    work.renew(own, "server")
    assert certificate(path).serial_number != before
    assert verifies(own, x509.DNSName(HOST), own.ca)


def test_without_the_cas_key_the_door_cannot_be_renewed_and_it_says_so(own: Federation) -> None:
    own.ca.with_name("ca.key").unlink()
    with pytest.raises(ConfideError) as caught:
        work.renew(own, "server")
    assert caught.value.code == "provision.ca"


def test_the_bundle_is_the_same_whenever_it_is_built_and_holds_no_code(
    own: Federation, tmp_path: Path
) -> None:
    assert bundle_hash(own) == bundle_hash(own) == own.bundle
    sent = flower.build(own, tmp_path)
    with zipfile.ZipFile(io.BytesIO(sent)) as archive:
        assert set(archive.namelist()) == {"pyproject.toml", "README.md", ".info/CONTENT"}


def test_the_bundle_starts_what_the_checkout_starts_and_knows_every_setting(
    own: Federation, root: Path
) -> None:
    ours = tomllib.loads((own.app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    checkout = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert ours["components"]["clientapp"] == checkout["components"]["clientapp"]
    # The checkout's is a simulation, which looks at what its holders have.
    assert ours["components"]["serverapp"] == "confide.server.app:app"
    assert checkout["components"]["serverapp"] == "confide.simulations.app:app"
    check_bundle(own, known_keys())


@pytest.mark.parametrize("harm", ["code", "component", "setting"])
def test_what_the_holders_have_not_pinned_is_not_started(own: Federation, harm: str) -> None:
    if harm == "code":
        (own.app / "confide").mkdir()
        (own.app / "confide" / "evil.py").write_text("print('mine now')\n")
    elif harm == "component":
        path = own.app / "pyproject.toml"
        path.write_text(path.read_text().replace("confide.client.app:app", "json:app"))
    keys = ["round.beyond"] if harm == "setting" else known_keys()
    with pytest.raises(ConfideError) as caught:
        check_bundle(own, keys)
    assert caught.value.code == "provision.bundle"


Mistake = Callable[[Federation], object]


@pytest.mark.parametrize(
    ("code", "mistake"),
    [
        ("provision.holders", lambda f: work.provision(f.folder / "x", holders=-1, host=HOST)),
        ("provision.host", lambda f: work.provision(f.folder / "x", holders=1, host="https://a")),
        ("provision.host", lambda f: work.provision(f.folder / "x", holders=1, host="a;b")),
        ("provision.port", lambda f: work.provision(f.folder / "x", holders=1, host="a", port=0)),
        ("provision.name", lambda f: work.add(f, "../up")),
        ("provision.name", lambda f: work.add(f, "node-1")),
        ("provision.name", lambda f: work.add(f, "server")),
        ("provision.name", lambda f: work.add(f, "North")),
        ("provision.holder", lambda f: work.add(f, "holder-1")),
        ("provision.holder", lambda f: work.revoke(f, "nobody")),
        ("provision.holder", lambda f: work.renew(f, "nobody")),
        ("federation.missing", lambda f: load_federation(f.folder / "nowhere")),
    ],
)
def test_mistakes_are_told_with_what_is_wrong(
    made: Federation, code: str, mistake: Mistake
) -> None:
    before = sorted(made.folder.rglob("*"))
    with pytest.raises(ConfideError) as caught:
        mistake(made)
    assert caught.value.code == code
    assert sorted(made.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("revoked = false", 'revoked = "no"'),
        ("host =", "hostess ="),
        ("port = 8443", 'port = "8443"'),
        ("expires = ", 'expires = "soon" # '),
        ("key = ", 'key = "00" # '),
        ("[holders", "[[holders"),
    ],
)
def test_a_damaged_federation_file_is_refused(own: Federation, old: str, new: str) -> None:
    path = own.folder / "federation.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfideError) as caught:
        load_federation(own.folder)
    assert caught.value.code in ("federation.format", "provision.port")


def test_the_summary_is_json(own: Federation) -> None:
    command = [sys.executable, "-m", "confide", "server", "provision", str(own.folder)]
    done = subprocess.run(
        [*command, "--add", "north", "--json"], capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert said["bundle"] == own.bundle
    assert [holder["name"] for holder in said["holders"]] == ["holder-1", "holder-2", "north"]


def test_a_federation_is_found_by_its_name_here_or_where_the_machine_keeps_them(
    made: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, here = tmp_path / "kept", tmp_path / "here"
    shutil.copytree(made.folder, kept / "hospitals")
    shutil.copytree(made.folder, here / "schools")
    monkeypatch.setenv("CONFIDE_FEDERATIONS", str(kept))
    monkeypatch.chdir(here)
    assert find_federation(Path("hospitals")).folder == kept / "hospitals"
    assert find_federation(Path("schools")).folder == here / "schools"
    assert find_federation(kept / "hospitals").folder == kept / "hospitals"
    shutil.copytree(made.folder, here / "hospitals")
    assert find_federation(Path("hospitals")).folder == here / "hospitals", "here comes first"


def test_an_unknown_name_is_refused_with_the_nearest_one(
    made: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFIDE_FEDERATIONS", str(tmp_path / "kept"))
    with pytest.raises(ConfideError, match=r"federation\.unknown.*provision"):
        find_federation(Path("hospital"))
    shutil.copytree(made.folder, tmp_path / "kept" / "hospitals")
    with pytest.raises(ConfideError, match=r"federation\.unknown.*'hospitals'"):
        find_federation(Path("hospital"))
    with pytest.raises(ConfideError, match=r"federation\.missing"):
        find_federation(tmp_path / "kept" / "hospital")
