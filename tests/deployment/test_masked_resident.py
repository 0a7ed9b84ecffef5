"""A resident behind masks, as a process, and a coordinator that is after its update: it has all
keys but the resident's own, chooses every list, and may kill it."""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from confide.client.guard.sum_keys import SumKeys
from confide.common.machine.paths import keys_beside
from confide.common.masking.keys import Identity, Roster
from confide.common.masking.openers import Card, Opener
from confide.common.wire.messages import (
    Opening,
    OpenRequest,
    Ready,
    Refusal,
    TrainRequest,
    Update,
    request_to_bytes,
)
from tests.circle import OTHERS, SHARED, Circle
from tests.client.marked import MARKER
from tests.deployment.house import House

NAME, RUN, ROUNDS = "ward", "run-1", 30
FALSE_ALARM = 1e-6  # of the chi-square
WHOLE_MARKER = re.compile(rb"zq[tpnlk]\d{3}")  # too long to come up in random bytes by chance


class Masked:
    """The resident's house, the circle around it, and the card that it gave."""

    def __init__(self, folder: Path, model: Path) -> None:
        changes = {**SHARED, "round__count": ROUNDS, "privacy__noise_multiplier": 100.0}
        self.house = House(folder, model, **changes)
        keys = SumKeys(keys_beside(self.house.place.site.ledger), NAME, create=True)
        self.circle = Circle(keys.identity.member)
        text = self.house.policy.read_text()
        self.house.policy.write_text(
            f'roster = "sha256:{self.circle.roster.digest}"\nopeners = ["{NAME}", "a"]\n'
            f"min-contributions = 3\ncolluding = 1\n{text}"
        )
        self.house.start()
        self.task = self.house.place.task(run=RUN)
        ready = self.house.ask(
            dataclasses.replace(self.task, dry=True, roster=self.circle.roster.to_bytes())
        )
        assert isinstance(ready, Ready), ready
        card = Card.from_bytes(ready.card, RUN)
        assert card.member == self.circle.member
        self.circle.own = card.opener

    def request(self, number: int) -> TrainRequest:
        return self.circle.asking(dataclasses.replace(self.task, round=number))

    def update(self, number: int) -> Update:
        reply = self.house.ask(self.request(number))
        assert isinstance(reply, Update), reply
        return reply

    def opening(self, number: int, who: str, **changes: object) -> OpenRequest:
        """Of a round, over the resident's own contribution (w) and those of a, b and c."""
        update = self.update(number)
        call = self.circle.call(self.request(number), len(update.values) // 4)
        said = {"w": update.statement, **self.circle.said(call)}
        return self.circle.opening(call, [said[name] for name in who], **changes)

    def refused(self, request: OpenRequest | TrainRequest) -> str:
        reply = self.house.ask(request)
        assert isinstance(reply, Refusal), reply
        assert (reply.holder, MARKER.search(str(reply).encode())) == (NAME, None)
        return reply.code


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Masked]:
    made = None
    try:
        made = Masked(tmp_path_factory.mktemp("masked"), tiny_model)
        yield made
    finally:
        if made is not None:
            made.house.stop()


def test_one_list_of_a_round_is_opened_and_no_other_after_a_death_either(masked: Masked) -> None:
    opening = masked.opening(1, "wab")
    first = masked.house.ask(opening)
    assert isinstance(first, Opening)
    others = [masked.opening(1, who) for who in ("wac", "wabc", "abc")]
    assert [masked.refused(one) for one in others] == ["sum.opened"] * 3
    masked.house.stop(signal.SIGKILL)
    masked.house.start()
    assert [masked.refused(one) for one in others] == ["sum.opened"] * 3
    assert masked.house.ask(opening) == first, "the same list again gives the same bytes"


def test_a_list_that_leaves_one_alone_is_never_opened(masked: Masked) -> None:
    """Too short, a holder twice, or one whom no administrator has in the roster."""
    whole = masked.opening(2, "wab")
    update = masked.update(2)
    call = masked.circle.call(masked.request(2), len(update.values) // 4)
    stranger = Identity("c", Identity.new_secret())
    circle = Circle(masked.circle.member)
    circle.others, circle.own = {**masked.circle.others, "c": stranger}, masked.circle.own
    forged = circle.said(call)["c"]
    said = masked.circle.said(call)
    wrong = {
        "sum.too-few": masked.opening(2, "wa"),
        "sum.twice": masked.opening(2, "waa"),
        "sum.signature": masked.circle.opening(call, [update.statement, said["a"], forged]),
        "policy.min-contributions": masked.opening(2, "wa", least=2, colluding=0),
        "policy.colluding": masked.opening(2, "wab", colluding=0),
    }
    assert {code: masked.refused(one) for code, one in wrong.items()} == {c: c for c in wrong}
    assert isinstance(masked.house.ask(whole), Opening), "none of it was booked"


def test_nothing_is_hidden_for_a_sum_that_others_would_open_alone(masked: Masked) -> None:
    """Members that the coordinator made up, openers of its own, a sealing key nobody signed."""
    made_up = Circle(masked.circle.member)
    made_up.own = masked.circle.own
    task, own = masked.request(3), masked.circle.own
    assert own is not None
    before = masked.house.place.charges()
    two = [Opener.of(masked.circle.others[name], RUN, masked.circle.key) for name in OTHERS[1:]]
    unsigned = dataclasses.replace(two[1], name=NAME)
    asked = {
        "policy.roster": dataclasses.replace(task, roster=made_up.roster.to_bytes()),
        "policy.openers": _with(task, [two[0], two[1]]),
        "sum.signature": _with(task, [two[0], unsigned]),
        "sum.call": _with(task, [own]),
        "sum.malformed": dataclasses.replace(task, openers=task.openers[:-1]),
    }
    assert {code: masked.refused(one) for code, one in asked.items()} == {c: c for c in asked}
    fewer = masked.house.place.settings | {"round.min-holders": 2}
    assert masked.refused(dataclasses.replace(task, settings=fewer)) == "policy.min-contributions"
    assert masked.house.place.charges() == before, "nothing was charged for any of it"


def _with(task: TrainRequest, openers: list[Opener]) -> TrainRequest:
    return dataclasses.replace(task, openers=b"".join(one.to_bytes() for one in openers))


def test_a_request_under_another_list_of_members_or_openers_is_another_request(
    masked: Masked,
) -> None:
    """So that one masked update is never opened by two sets of openers."""
    first = masked.update(4)
    turned = masked.request(4)
    openers = list(masked.circle.openers(RUN))
    openers[1] = Opener.of(masked.circle.others["b"], RUN, masked.circle.key)
    policy = masked.house.policy.read_text()
    try:
        masked.house.policy.write_text(policy.replace('"a"]', '"a", "b"]'))
        other = _with(turned, openers)
        assert other.hash != turned.hash
        reply = masked.house.ask(other)
        assert isinstance(reply, Refusal | Update)
        if isinstance(reply, Update):
            assert reply.values != first.values
    finally:
        masked.house.policy.write_text(policy)
    assert masked.update(4) == first


def test_killed_behind_masks_it_sends_one_update_of_a_round_or_none(masked: Masked) -> None:
    from confide.client.site import unix_socket
    from tests.deployment.conftest import wait_for

    before, task = masked.house.place.charges(), masked.request(5)
    with unix_socket.connect(masked.house.socket, 30) as call:
        unix_socket.send(call, unix_socket.TASK, request_to_bytes(task))
        wait_for(lambda: masked.house.place.charges() > before, 60)
        masked.house.stop(signal.SIGKILL)
    masked.house.start()
    replies = [masked.house.ask(task) for _ in range(2)]
    assert replies[0] == replies[1]
    if isinstance(replies[0], Refusal):
        assert replies[0].code == "ledger.task-spent"
    assert masked.house.place.charges() == before + 1


def test_masked_bytes_are_uniform_on_the_wire_and_a_marker_is_in_none(masked: Masked) -> None:
    """Chi-square over the 256 values of a byte. What is below the masks is not: a holder's words
    are a small sum with noise, whose upper bytes say nothing but its sign."""
    updates = [masked.update(number) for number in range(10, 16)]
    values = b"".join(one.values for one in updates)
    assert uniform(values) > FALSE_ALARM
    names = re.compile(b"|".join(name.encode() for name in (NAME, RUN)))
    for one in updates:
        assert WHOLE_MARKER.search(one.values + one.statement) is None
        assert names.search(one.values) is None
    bare = np.random.default_rng(1).normal(0, 1e4, len(values) // 4).round().astype(np.int32)
    assert uniform(bare.tobytes()) < FALSE_ALARM, "it would find what is not masked"


def uniform(data: bytes) -> float:
    """The p-value of so many of each byte."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    return float(chisquare(counts).pvalue)


def test_a_roster_without_the_resident_makes_no_card(masked: Masked) -> None:
    others = [one.member for one in masked.circle.others.values()]
    dry = dataclasses.replace(masked.task, dry=True, roster=Roster(others).to_bytes())
    assert masked.refused(dry) == "policy.roster"
