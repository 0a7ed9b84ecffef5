"""A holder's keys and openings: made here, used once, destroyed in time, durable until then."""

from __future__ import annotations

import dataclasses
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard.policy import SIMULATION, Policy
from confide.client.guard.sum_keys import SumKeys
from confide.client.opening import SumMember
from confide.common.errors import ConfideError
from confide.common.masking.keys import Identity, Roster
from confide.common.masking.openers import Call, Opener, contribute
from confide.common.masking.ring import CHECKS, to_words
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import OpenRequest

RUN, VALUES = "run-1", 5
NAMES = ("a", "b", "c", "d")


class Place:
    """Four members with folders of their own; the first two open."""

    def __init__(self, folder: Path, policy: Policy = SIMULATION) -> None:
        self.folder, self.policy = folder, policy
        self.keys = {name: SumKeys(folder / name / "keys", name, create=True) for name in NAMES}
        self.identities = {name: keys.identity for name, keys in self.keys.items()}
        self.roster = Roster([one.member for one in self.identities.values()])
        self.openers = tuple(
            Opener.of(self.identities[name], RUN, self.keys[name].of_run(RUN, 600.0))
            for name in NAMES[:2]
        )
        self.call = Call(
            run=RUN,
            request="a" * 64,
            roster=self.roster,
            openers=self.openers,
            least=3,
            colluding=1,
            size=VALUES + CHECKS,
        )
        self.ledger_file = folder / "a" / "ledger.sqlite"

    def request(self, *who: str, call: Call | None = None, **changes: Any) -> OpenRequest:
        call = call or self.call
        vector = to_words(__import__("numpy").zeros(VALUES), 1.0)
        if not hasattr(self, "_said"):
            self._said = {
                name: contribute(one, call, vector)[0].to_bytes()
                for name, one in self.identities.items()
            }
        known: dict[str, Any] = {
            "run": call.run,
            "task_hash": call.request,
            "least": call.least,
            "colluding": call.colluding,
            "size": call.size,
            "roster": call.roster.to_bytes(),
            "openers": b"".join(one.to_bytes() for one in call.openers),
            "statements": b"".join(self._said[name] for name in who),
        }
        return OpenRequest(**(known | changes))

    def open(self, request: OpenRequest, policy: Policy | None = None) -> bytes:
        """As a process that was just started would."""
        keys = SumKeys(self.folder / "a" / "keys", "a")
        member = SumMember(keys, "a", policy or self.policy)
        with Ledger.open(self.ledger_file, create=True) as ledger:
            return member.open(request, ledger).values

    def booked(self) -> list[str]:
        with Ledger.open(self.ledger_file, create=False) as ledger:
            return [e.payload["set"] for e in ledger.entries() if e.payload["state"] == "opened"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def refused(code: str, place: Place, request: OpenRequest, policy: Policy | None = None) -> None:
    with pytest.raises(ConfideError) as caught:
        place.open(request, policy)
    assert caught.value.code == code


def test_keys_are_this_users_alone_and_made_once(place: Place) -> None:
    for path in (place.folder / "a" / "keys").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    with pytest.raises(ConfideError, match=r"sum\.enrolled"):
        place.keys["a"].enrol()
    again = SumKeys(place.folder / "a" / "keys", "a")
    assert again.identity.member == place.identities["a"].member
    assert again.of_run(RUN).public == place.openers[0].sealing


def test_a_holder_that_did_not_enrol_has_no_part_in_a_sum(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"sum\.no-identity"):
        _ = SumKeys(tmp_path / "none", "x").identity
    assert not (tmp_path / "none").exists()


def test_a_sum_is_opened_once_for_one_set_and_the_same_again_is_the_same_bytes(
    place: Place,
) -> None:
    first = place.open(place.request("a", "b", "c"))
    assert place.open(place.request("c", "b", "a")) == first
    assert len(place.booked()) == 1
    refused("sum.opened", place, place.request("a", "b", "c", "d"))
    refused("sum.opened", place, place.request("a", "b", "d"))
    assert len(place.booked()) == 1


def test_what_is_refused_is_not_booked(place: Place) -> None:
    refused("sum.too-few", place, place.request("a", "b"))
    refused("sum.twice", place, place.request("a", "b", "b"))
    refused("sum.signature", place, place.request("a", "b", "c", task_hash="b" * 64))
    refused("sum.signature", place, place.request("a", "b", "c", "d", least=4))
    refused("sum.call", place, place.request("a", "b", "c", least=2, colluding=0))
    refused("sum.malformed", place, place.request("a", "b", "c", statements=b"\x01x"))
    assert place.booked() == []
    assert place.open(place.request("a", "b", "c"))


def test_an_opener_killed_after_it_booked_answers_as_it_would_have(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.common.masking.openers import Openable

    request = place.request("a", "b", "d")
    with monkeypatch.context() as patch:

        def killed(self: Openable) -> bytes:
            assert len(place.booked()) == 1, "it is in the file before an answer exists"
            raise KeyboardInterrupt

        patch.setattr(Openable, "answer", killed)
        with pytest.raises(KeyboardInterrupt):
            place.open(request)
    refused("sum.opened", place, place.request("a", "b", "c"))
    assert place.open(request)
    assert len(place.booked()) == 1


def test_an_older_ledger_that_is_put_back_with_its_keys_opens_nothing(place: Place) -> None:
    """The files come back as copies: another time of change, if not another inode."""
    home = place.folder / "a"
    place.open(place.request("a", "b", "c"))
    backup = place.folder / "backup"
    shutil.copytree(home, backup)
    place.open(place.request("a", "b", "c"))
    shutil.rmtree(home)
    shutil.copytree(backup, home)
    place.ledger_file.unlink()  # as it was before the first opening
    refused("sum.no-key", place, place.request("a", "b", "d"))
    assert not list((home / "keys" / "runs").iterdir()), "it was destroyed unread"
    assert place.booked() == []


def test_an_older_ledger_alone_that_is_put_back_opens_nothing_a_second_time(place: Place) -> None:
    """The sums are booked beside the key, too."""
    with Ledger.open(place.ledger_file, create=True):
        pass
    before = place.ledger_file.read_bytes()
    first = place.open(place.request("a", "b", "c"))
    place.ledger_file.write_bytes(before)
    refused("sum.opened", place, place.request("a", "b", "d"))
    assert place.open(place.request("a", "b", "c")) == first


def test_the_key_of_a_run_goes_once_no_call_can_be_open(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = place.folder / "a" / "keys" / "runs"
    now = time.time()
    place.keys["a"].of_run(RUN)
    monkeypatch.setattr(time, "time", lambda: now + 600 + 24 * 3600 - 60)
    place.keys["a"].destroy_old()
    assert len(list(runs.glob("*.key"))) == 1
    monkeypatch.setattr(time, "time", lambda: now + 600 + 24 * 3600 + 60)
    refused("sum.no-key", place, place.request("a", "b", "c"))
    assert not list(runs.iterdir())


def test_no_more_keys_are_kept_than_runs_may_be_open(place: Place) -> None:
    keys = place.keys["a"]
    for number in range(40):
        keys.of_run(f"other-{number}", 600.0)
    assert len(list((place.folder / "a" / "keys" / "runs").glob("*.key"))) == 16
    assert len(list((place.folder / "a" / "keys" / "runs").iterdir())) == 32
    assert keys.of_run("other-39")
    with pytest.raises(ConfideError, match=r"sum\.no-key"):
        keys.of_run("other-0")


@pytest.mark.parametrize("run", ["../x", "", "a/b", ".hidden", "x" * 129])
def test_a_runs_id_never_leaves_the_folder(place: Place, run: str) -> None:
    with pytest.raises(ConfideError, match=r"task\.run"):
        place.keys["a"].of_run(run, 600.0)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"roster": "sha256:" + "0" * 64}, "policy.roster"),
        ({"roster": "", "allow_any_roster": False}, "policy.roster"),
        ({"min_contributions": 4}, "policy.min-contributions"),
        ({"colluding": 2}, "policy.colluding"),
    ],
)
def test_an_opener_holds_a_sum_against_its_own_policy(
    place: Place, limits: dict[str, Any], code: str
) -> None:
    policy = dataclasses.replace(SIMULATION, **limits)
    refused(code, place, place.request("a", "b", "c"), policy)
    assert not place.ledger_file.exists() or place.booked() == []
    fits = dataclasses.replace(SIMULATION, roster=f"sha256:{place.roster.digest}")
    assert place.open(place.request("a", "b", "c"), fits)


def test_members_that_the_coordinator_made_up_are_refused(place: Place) -> None:
    """By the digest where it was compared; and by its own key where this holder's was swapped."""
    fakes = [Identity(name, Identity.new_secret()) for name in NAMES]
    made_up = Roster([one.member for one in fakes])
    policy = dataclasses.replace(SIMULATION, roster=f"sha256:{place.roster.digest}")
    request = place.request("a", "b", "c", roster=made_up.to_bytes())
    refused("policy.roster", place, request, policy)
    refused("sum.stranger", place, request)


def test_no_secret_is_in_the_ledger_or_in_an_answer(place: Place) -> None:
    answer = place.open(place.request("a", "b", "c"))
    secrets = [
        (place.folder / "a" / "keys" / "identity").read_bytes(),
        (place.folder / "a" / "keys" / "runs" / f"{RUN}.key").read_bytes(),
    ]
    written = place.ledger_file.read_bytes()
    for secret in secrets:
        for form in (secret, secret.hex().encode()):
            assert form not in written
            assert form not in answer
