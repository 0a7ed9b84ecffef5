"""Holders that made their own keys, at the coordinator: what it takes, keeps and says of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from click.testing import Result
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.client.site.enrol import Enrolling, enrol
from confide.common.errors import ConfideError
from confide.common.machine.kit import KEY_FILE, read_kit
from confide.common.masking.enrolment import Enrolment, read_request, read_roster
from confide.common.masking.keys import Roster, spoken
from confide.common.settings import Settings, from_flat
from confide.server.deploy import flower
from confide.server.deploy import provision as work
from confide.server.deploy.federation import Federation, load_federation
from confide.server.deploy.members import check_roster, roster_here
from confide.server.deploy.run import run_over
from confide.server.run import run as run_here
from confide.server.transport import Transport
from tests import tiny
from tests.deployment.test_provision import HOST

NAMES = ("east", "north", "south")


class Sites:
    """Holders on machines of their own: ``kit`` and secrets lie here, never at the coordinator."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def request(self, name: str, folder: str = "kit", keys: str = "") -> Path:
        """What ``client enrol`` writes; with ``keys``, for another signing key."""
        own = self.place / f"{name}{keys}"
        own.mkdir(parents=True, exist_ok=True)
        return enrol(Enrolling(folder=own / folder, name=name, ledger=own / "ledger")).request

    def kit(self, name: str) -> Path:
        return self.place / name / "kit"

    def secrets(self) -> list[bytes]:
        found = []
        for path in self.place.rglob("*"):
            if path.name == "identity":
                found += [path.read_bytes(), path.read_bytes().hex().encode()]
            elif path.name == KEY_FILE:
                found += path.read_bytes().splitlines()[1:-1]
        return found


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    return Sites(tmp_path / "sites")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return work.provision(tmp_path_factory.mktemp("requests") / "hospitals", host=HOST)


@pytest.fixture
def fed(tmp_path: Path, empty: Federation) -> Federation:
    return load_federation(Path(shutil.copytree(empty.folder, tmp_path / "hospitals")))


@pytest.fixture
def full(fed: Federation, sites: Sites) -> Federation:
    """Three members."""
    for name in NAMES:
        fed = work.add(fed, name, read_request(sites.request(name)))
    return fed


def provision(fed: Federation, *words: object) -> Result:
    return CliRunner().invoke(
        build_app(), ["server", "provision", str(fed.folder), *map(str, words)]
    )


def code_of(result: Result) -> str:
    return getattr(result.exception, "code", "")


def test_a_new_federation_is_empty_unless_it_is_a_trial(empty: Federation) -> None:
    assert (empty.holders, len(empty.roster)) == ({}, 0)
    assert load_federation(empty.folder) == empty
    assert not (empty.folder / "roster.toml").exists()


def test_a_kit_for_own_keys_has_no_secret_and_works_in_the_holders_folder(
    full: Federation, sites: Sites
) -> None:
    assert sorted(path.name for path in full.kit("north").iterdir()) == [
        "README.md",
        "ca.crt",
        "kit.toml",
        "node.pub",
        "roster.toml",
    ]
    key = (sites.kit("north") / "node.key").read_bytes()
    shutil.copytree(full.kit("north"), sites.kit("north"), dirs_exist_ok=True)
    assert read_kit(sites.kit("north")).name == "north"
    assert (sites.kit("north") / "node.key").read_bytes() == key
    readme = (full.kit("north") / "README.md").read_text()
    assert "never\n   had it" in readme or "never had it" in readme
    assert len(readme.splitlines()) < 42, "one page"


def test_no_private_half_of_a_holders_key_is_below_the_coordinators_folder(
    full: Federation, sites: Sites
) -> None:
    secrets = sites.secrets()
    assert len(secrets) > 3 * 2
    for path in full.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert [secret for secret in secrets if secret in data] == [], path
    assert list(full.folder.rglob(KEY_FILE)) == []


def test_what_is_written_is_read_back_and_everybody_has_the_same_roster(full: Federation) -> None:
    assert load_federation(full.folder) == full
    assert [holder.made_here for holder in full.holders.values()] == [False] * 3
    assert [one.name for one in full.roster.members] == list(NAMES)
    for place in (full.folder, *(full.kit(name) for name in NAMES)):
        assert read_roster(place / "roster.toml") == full.roster


def test_what_the_server_registers_is_the_requests_key(full: Federation, sites: Sites) -> None:
    mine = (sites.kit("north") / "node.pub").read_bytes()
    assert full.public_key("north").read_bytes() == mine


def test_a_revoked_holder_is_no_member_any_more(full: Federation) -> None:
    changed = work.revoke(full, "north")
    assert [one.name for one in changed.roster.members] == ["east", "south"]
    assert read_roster(full.kit("east") / "roster.toml") == changed.roster


def test_a_renewed_node_key_leaves_the_roster_as_it_was_compared(
    full: Federation, sites: Sites
) -> None:
    changed = work.renew(full, "north", read_request(sites.request("north", folder="renewed")))
    assert changed.roster == full.roster
    assert changed.holders["north"].key != full.holders["north"].key
    assert not changed.holders["north"].made_here


def test_another_signing_key_is_another_roster(full: Federation, sites: Sites) -> None:
    changed = work.renew(full, "north", read_request(sites.request("north", keys="-anew")))
    assert changed.roster.digest != full.roster.digest
    assert [one.name for one in changed.roster.members] == list(NAMES)


def test_a_trials_holder_is_in_no_roster_until_it_enrols_with_the_key_that_it_got(
    fed: Federation, sites: Sites
) -> None:
    trial = work.add(fed, "north")
    assert (trial.holders["north"].made_here, len(trial.roster)) == (True, 0)
    shutil.copytree(trial.kit("north"), sites.kit("north"))
    changed = work.renew(trial, "north", read_request(sites.request("north")))
    assert changed.holders["north"].key == trial.holders["north"].key
    assert changed.holders["north"].made_here, "it still connects by a key that was made here"
    assert [one.name for one in changed.roster.members] == ["north"]
    assert not (changed.kit("north") / KEY_FILE).exists()
    # A key that is made here anew leaves the signing key, which never was.
    assert work.renew(changed, "north").roster == changed.roster


def request_of(sites: Sites, name: str, **changes: object) -> Enrolment:
    return replace(read_request(sites.request(name)), **changes)  # type: ignore[arg-type]


def test_a_request_that_does_not_fit_changes_nothing(full: Federation, sites: Sites) -> None:
    mine, theirs = full.holders["north"], read_request(sites.place / "south/kit/request.toml")
    west = request_of(sites, "west")
    before = {path: path.stat().st_mtime_ns for path in full.folder.rglob("*")}
    for code, change in (
        ("provision.request", lambda: work.add(full, "west", theirs)),
        ("provision.request", lambda: work.renew(full, "north", theirs)),
        ("provision.request", lambda: work.renew(full, "north")),
        ("provision.request", lambda: work.renew(full, "bundle", theirs)),
        ("provision.holder", lambda: work.add(full, "south", theirs)),
        ("provision.holder", lambda: work.renew(full, "west", west)),
        ("provision.key-used", lambda: work.add(full, "west", replace(west, node=theirs.node))),
        (
            "provision.key-used",
            lambda: work.add(full, "west", replace(west, signing=theirs.signing)),
        ),
        (
            "provision.name",
            lambda: work.add(full, "node-1", replace(west, name="node-1")),
        ),
    ):
        with pytest.raises(ConfideError) as caught:
            change()
        assert caught.value.code == code
        assert caught.value.hint
    assert {path: path.stat().st_mtime_ns for path in full.folder.rglob("*")} == before
    assert load_federation(full.folder).holders["north"] == mine


def test_a_key_that_was_shut_out_does_not_come_back(full: Federation, sites: Sites) -> None:
    """Flower takes a key once: the holder would wait for ever."""
    same = read_request(sites.place / "north/kit/request.toml")
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    late = full.with_holder(replace(full.holders["north"], expires=yesterday))
    for shut in (late, work.revoke(full, "north")):
        with pytest.raises(ConfideError, match=r"provision\.key-used.*twice"):
            work.renew(shut, "north", same)
    new = read_request(sites.request("north", folder="renewed"))
    assert work.renew(work.revoke(full, "north"), "north", new).roster == full.roster
    assert work.renew(full, "north", same).holders["north"] == full.holders["north"]


def test_a_revoked_holders_keys_serve_nobody_else(full: Federation, sites: Sites) -> None:
    shut = work.revoke(full, "south")
    theirs = read_request(sites.place / "south/kit/request.toml")
    taken = request_of(sites, "west", signing=theirs.signing)
    with pytest.raises(ConfideError, match=r"provision\.key-used.*south"):
        work.add(shut, "west", taken)


def test_an_older_federation_is_read_as_one_whose_keys_were_made_here(fed: Federation) -> None:
    work.add(fed, "north")
    path = fed.folder / "federation.toml"
    text = re.sub(r"(made-here|signing) = .*\n", "", path.read_text())
    path.write_text(text)
    holder = load_federation(fed.folder).holders["north"]
    assert (holder.made_here, holder.signing) == (True, "")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("made-here = false", 'made-here = "no"'),
        ('signing = "', 'signing = "0'),
        ('signing = "', "signing = 3 #"),
    ],
)
def test_a_damaged_line_about_own_keys_is_refused(full: Federation, old: str, new: str) -> None:
    path = full.folder / "federation.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfideError, match=r"federation\.format"):
        load_federation(full.folder)


def test_two_holders_of_one_signing_key_are_no_federation(full: Federation) -> None:
    path = full.folder / "federation.toml"
    own, other = (full.holders[name].signing for name in ("east", "north"))
    path.write_text(path.read_text().replace(own, other))
    with pytest.raises(ConfideError, match=r"federation\.format.*twice"):
        load_federation(full.folder)


# The commands


def test_the_command_takes_a_request_and_says_what_a_new_roster_asks_of_everybody(
    fed: Federation, sites: Sites
) -> None:
    done = provision(fed, "--add", "north", "--request", sites.request("north"))
    assert done.exit_code == 0, done.exception
    roster = load_federation(fed.folder).roster
    for part in ("another one now", spoken(roster.digest), "compare these words anew", "policies"):
        assert part in done.stdout
    assert "made HERE" not in done.stdout
    again = provision(fed, "--renew", "north", "--request", sites.request("north", "renewed"))
    assert "another one now" not in again.stdout, "the same signing key: nothing to compare"
    assert "old key no longer counts" in again.stdout
    gone = provision(fed, "--revoke", "north")
    assert "The roster is empty now" in gone.stdout


def test_the_command_refuses_a_request_that_was_changed(fed: Federation, sites: Sites) -> None:
    path = sites.request("north")
    path.write_text(path.read_text().replace('name = "north"', 'name = "south"'))
    assert code_of(provision(fed, "--add", "south", "--request", path)) == "request.signature"
    assert code_of(provision(fed, "--add", "x", "--request", "nowhere")) == "request.missing"
    assert load_federation(fed.folder).holders == {}


def test_the_old_way_says_that_keys_were_made_here(fed: Federation, tmp_path: Path) -> None:
    assert "made HERE" in provision(fed, "--add", "north").stdout
    assert "made HERE" in provision(fed, "--renew", "north").stdout
    new = tmp_path / "trial"
    said = CliRunner().invoke(
        build_app(), ["server", "provision", str(new), "--holders", "1", "--host", HOST]
    )
    assert "made HERE" in said.stdout
    assert "THE COORDINATOR MADE IT" in (new / "kits" / "holder-1" / "README.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--request", "r"],
        ["--host", HOST, "--request", "r"],
        ["--revoke", "north", "--request", "r"],
        ["--add", "a", "--renew", "b"],
        ["--holders", "3"],
        ["--add", "a", "--host", HOST],
        [],
    ],
)
def test_options_that_do_not_go_together_are_refused(fed: Federation, words: list[str]) -> None:
    assert code_of(provision(fed, *words)) == "provision.usage"


def test_the_roster_is_shown_by_members_digest_and_words(full: Federation) -> None:
    words = ["server", "roster", str(full.folder)]
    said = CliRunner().invoke(build_app(), words).stdout
    for part in (*NAMES, f"sha256:{full.roster.digest}", spoken(full.roster.digest)):
        assert part in said
    told = json.loads(CliRunner().invoke(build_app(), [*words, "--json"]).stdout)
    assert told["digest"] == f"sha256:{full.roster.digest}"
    assert list(told["members"]) == list(NAMES)
    work.add(full, "west")
    assert "sent no signing key: west" in CliRunner().invoke(build_app(), words).stdout


def test_status_says_whose_keys_were_made_here(full: Federation) -> None:
    work.add(full, "west")
    words = ["server", "status", str(full.folder)]
    said = CliRunner().invoke(build_app(), words).stdout
    assert "Keys made HERE, for a trial on one machine: west\n" in said
    told = json.loads(CliRunner().invoke(build_app(), [*words, "--json"]).stdout)
    found = {row["name"]: (row["made_here"], row["signs"]) for row in told["holders"]}
    assert found == dict.fromkeys(NAMES, (False, True)) | {"west": (True, False)}


# A run

PLACE = Path("nowhere")
LOCAL = {**Settings().to_flat(), **tiny.config(PLACE, PLACE, PLACE, round__min_holders=4)}
SHARED = {**LOCAL, "privacy.trust": "distributed"}


def test_a_run_with_a_secure_sum_is_refused_while_too_few_are_members(full: Federation) -> None:
    """Before anything is asked: nothing of Flower's runs here."""
    with pytest.raises(ConfideError, match=r"sum\.no-roster.*at least 4.*3 of this") as caught:
        run_over(full, SHARED, lambda _: None, wait=0)
    assert "client enrol" in caught.value.hint
    check_roster(from_flat({**SHARED, "round.min-holders": 3}), full.roster)


def test_whoever_starts_it_by_flwr_run_is_refused_before_any_holder_is_looked_for(
    tmp_path: Path,
) -> None:
    config = {**SHARED, "run.out": str(tmp_path / "runs")}
    transport = cast("Transport", None)
    with pytest.raises(ConfideError, match=r"sum\.no-roster"):
        run_here(config, transport, roster=Roster([]))
    (folder,) = (tmp_path / "runs").iterdir()
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["status"], last["code"]) == ("failed", "sum.no-roster")


def test_a_serverapp_knows_the_roster_of_its_server(
    full: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(flower.FEDERATION, raising=False)
    assert roster_here() is None
    monkeypatch.setenv(flower.FEDERATION, str(full.folder))
    assert roster_here() == full.roster
    for name in NAMES:
        full = work.revoke(full, name)
    assert roster_here() == Roster([]), "empty, and not one that the holders' own cards make"


def test_only_a_run_with_secure_sums_asks_for_members() -> None:
    check_roster(from_flat(LOCAL), Roster([]))
    with pytest.raises(ConfideError, match=r"sum\.no-roster"):
        check_roster(from_flat(SHARED), Roster([]))
