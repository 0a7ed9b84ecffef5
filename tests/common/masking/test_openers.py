"""A sum is opened once, for one signed set of enough members, or not at all."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from confide.common.errors import ConfideError
from confide.common.masking.keys import Identity, Roster, SealingKey, seal
from confide.common.masking.openers import (
    Call,
    Opener,
    Statement,
    combine,
    contribute,
    openable,
    openers_from_bytes,
    statement_from_bytes,
    statements_from_bytes,
)
from confide.common.masking.ring import CHECKS, SEED_BYTES, Words, from_words, to_words

RUN, STEP, VALUES = "run-1", 2.0**-8, 6


class Group:
    """Members with their keys, of whom the first open."""

    def __init__(self, members: int, openers: int, least: int) -> None:
        self.identities = [Identity(f"h{i:02}", Identity.new_secret()) for i in range(members)]
        self.roster = Roster([one.member for one in self.identities])
        self.keys = [SealingKey(SealingKey.new_secret()) for _ in range(openers)]
        pairs = zip(self.identities, self.keys, strict=False)
        self.openers = tuple(Opener.of(one, RUN, key) for one, key in pairs)
        self.call = self.ask(least=least)
        chance = np.random.default_rng(members)
        self.vectors = chance.integers(-(2**20), 2**20, (members, VALUES)) * STEP

    def ask(self, request: str = "a" * 64, **changes: object) -> Call:
        known = {
            "run": RUN,
            "request": request,
            "roster": self.roster,
            "openers": self.openers,
            "least": len(self.identities),
            "colluding": len(self.openers) - 1,
            "size": VALUES + CHECKS,
        }
        return Call(**(known | changes))  # type: ignore[arg-type]

    def contributed(
        self, who: Sequence[int], call: Call | None = None
    ) -> list[tuple[Statement, bytes]]:
        call = call or self.call
        return [contribute(self.identities[i], call, to_words(self.vectors[i], STEP)) for i in who]

    def opened(
        self, statements: Sequence[Statement], opener: int, call: Call | None = None
    ) -> bytes:
        call = call or self.call
        name = self.identities[opener].name
        return openable(name, self.keys[opener], call, statements).answer()

    def summed(self, parts: Sequence[tuple[Statement, bytes]]) -> Words:
        statements = [statement for statement, _ in parts]
        answers = {one.name: self.opened(statements, i) for i, one in enumerate(self.openers)}
        return combine(self.call, [payload for _, payload in parts], answers)


@pytest.mark.parametrize(
    ("members", "openers"), [(2, 1), (3, 2), (5, 3), (10, 3), (10, 10), (50, 2), (20, 18)]
)
def test_the_sum_is_exact(members: int, openers: int) -> None:
    group = Group(members, openers, least=max(2, openers))
    group.call.check()
    for count in {members, max(2, openers, members - 2)}:
        who = random.Random(count).sample(range(members), count)
        total = from_words(group.summed(group.contributed(who)), STEP, count)
        assert total.tolist() == group.vectors[who].sum(axis=0).tolist()


def test_the_same_set_again_is_the_same_bytes_in_any_order() -> None:
    group = Group(5, 2, least=4)
    statements = [s for s, _ in group.contributed(range(5))]
    first = openable("h00", group.keys[0], group.call, statements)
    again = openable("h00", group.keys[0], group.call, statements[::-1])
    assert (first.digest, first.answer()) == (again.digest, again.answer())
    fewer = openable("h00", group.keys[0], group.call, statements[:-1])
    assert fewer.digest != first.digest


def test_openers_that_are_shown_different_sets_leave_nothing_decodable() -> None:
    group = Group(5, 2, least=3)
    parts = group.contributed(range(5))
    sets = [s for size in (3, 4, 5) for s in itertools.combinations(range(5), size)]
    answers = [
        {s: group.opened([parts[i][0] for i in s], opener) for s in sets} for opener in (0, 1)
    ]
    for one, other, sent in itertools.product(sets, repeat=3):
        if one == other == sent:
            continue
        total = combine(
            group.call,
            [parts[i][1] for i in sent],
            {"h00": answers[0][one], "h01": answers[1][other]},
        )
        with pytest.raises(ConfideError, match=r"sum\.broken"):
            from_words(total, STEP, len(sent))


def test_all_openers_but_one_know_nothing() -> None:
    from tests.common.masking.test_ring import uniformity

    group = Group(3, 3, least=3)
    call = group.ask(size=200_000 + CHECKS)
    statement, payload = contribute(group.identities[2], call, to_words(np.zeros(200_000), STEP))
    seen = np.frombuffer(payload, dtype="<u4").astype(np.uint32)
    for place in (0, 1):  # two of the three tell the seeds that were sealed to them
        from confide.common.masking.ring import add_mask

        seed = group.keys[place].unseal(
            statement.sealed[place], call.info("h02", group.openers[place].name)
        )
        mask = np.zeros_like(seen)
        add_mask(mask, seed)
        seen = seen - mask
    assert uniformity(seen) > 1e-6


def refused(code: str, group: Group, statements: Sequence[Statement], call: Call) -> None:
    call.check()
    with pytest.raises(ConfideError) as caught:
        openable("h00", group.keys[0], call, statements)
    assert caught.value.code == code


def test_what_an_opener_refuses() -> None:
    group = Group(5, 2, least=4)
    parts = group.contributed(range(5))
    good = [s for s, _ in parts]
    stranger = Identity("h99", Identity.new_secret())
    made_up, _ = contribute(stranger, group.call, to_words(group.vectors[0], STEP))
    impostor = Identity("h03", Identity.new_secret())
    swapped, _ = contribute(impostor, group.call, to_words(group.vectors[0], STEP))
    other = group.ask(request="b" * 64, least=4)
    replayed = [s for s, _ in group.contributed(range(5), other)]
    moved = dataclasses.replace(good[1], sealed=good[2].sealed)
    rubbish = signed(group, 1, tuple(bytes(len(s)) for s in good[1].sealed))
    copied = signed(group, 1, good[2].sealed)
    few = dataclasses.replace(good[1], sealed=good[1].sealed[:1])
    cases = {
        "sum.too-few": good[:3],
        "sum.twice": [*good[:4], good[0]],
        "sum.stranger": [*good[:4], made_up],
        "sum.signature": [*good[:3], swapped],
    }
    for code, statements in cases.items():
        refused(code, group, statements, group.call)
    refused("sum.signature", group, replayed, group.call)
    refused("sum.signature", group, good, other)
    refused("sum.signature", group, [good[0], moved, *good[2:]], group.call)
    refused("sum.sealed", group, [good[0], rubbish, *good[2:]], group.call)
    refused("sum.sealed", group, [good[0], copied, *good[2:]], group.call)
    refused("sum.call", group, [good[0], few, *good[2:]], group.call)
    with pytest.raises(ConfideError, match=r"sum\.no-opener"):
        openable("h03", group.keys[0], group.call, good)
    with pytest.raises(ConfideError, match=r"sum\.no-opener"):
        openable("h00", group.keys[1], group.call, good)


def signed(group: Group, who: int, sealed: tuple[bytes, ...]) -> Statement:
    """A statement of that member over other seals, signed as it would."""
    one = group.identities[who]
    bare = Statement(one.name, bytes(32), sealed)
    return dataclasses.replace(bare, signature=one.sign(bare.body(group.call)))


def test_a_seed_of_another_length_is_noticed_before_anything_is_answered() -> None:
    group = Group(3, 1, least=2)
    info = group.call.info("h01", "h00")
    short = signed(group, 1, (seal(bytes(SEED_BYTES // 2), group.keys[0].public, info),))
    good, _ = group.contributed([0])[0]
    refused("sum.sealed", group, [good, short], group.call)


@pytest.mark.parametrize(
    "changes",
    [
        {"least": 1},
        {"least": 6},
        {"colluding": 0},
        {"colluding": 2},
        {"size": CHECKS},
        {"size": 2**28},
        {"openers": ()},
        {"openers": (), "colluding": -1},
        {"least": 2, "colluding": 4},
    ],
)
def test_what_is_no_call(changes: dict[str, object]) -> None:
    group = Group(5, 2, least=4)
    with pytest.raises(ConfideError, match=r"sum\.call"):
        group.ask(**changes).check()


def test_openers_are_different_members_who_signed_for_this_run() -> None:
    group = Group(4, 2, least=3)
    first = group.openers[0]
    with pytest.raises(ConfideError, match=r"sum\.call"):
        group.ask(openers=(first, first), least=3).check()
    outside = Identity("h77", Identity.new_secret())
    foreign = Opener.of(outside, RUN, group.keys[1])
    with pytest.raises(ConfideError, match=r"sum\.stranger"):
        group.ask(openers=(first, foreign), least=3).check()
    late = Opener.of(group.identities[1], "run-2", group.keys[1])
    with pytest.raises(ConfideError, match=r"sum\.signature"):
        group.ask(openers=(first, late), least=3).check()


def test_every_fact_of_a_call_is_in_its_digest() -> None:
    group, other = Group(5, 2, least=4), Group(5, 2, least=4)
    changes = {
        "run": "run-2",
        "request": "c" * 64,
        "roster": other.roster,
        "openers": group.openers[::-1],
        "least": 5,
        "colluding": 3,
        "size": 99,
    }
    assert set(changes) == {f.name for f in dataclasses.fields(Call)}
    found = {
        group.call.digest,
        *(dataclasses.replace(group.call, **{k: v}).digest for k, v in changes.items()),
    }
    assert len(found) == 1 + len(changes)


def test_every_fact_of_a_statement_is_signed() -> None:
    group = Group(3, 2, least=3)
    (good, _), (other, _) = group.contributed([0, 1])
    good.check(group.call)
    for change in (
        {"name": "h01"},
        {"masked": bytes(32)},
        {"sealed": other.sealed},
        {"sealed": good.sealed[::-1]},
        {"signature": other.signature},
        {"signature": b""},
    ):
        with pytest.raises(ConfideError, match=r"sum\.signature"):
            dataclasses.replace(good, **change).check(group.call)


def test_a_contribution_is_of_the_size_that_was_asked_for() -> None:
    group = Group(3, 1, least=2)
    for wrong in (np.zeros(3, dtype=np.uint32), np.zeros(VALUES + CHECKS)):
        with pytest.raises(ConfideError, match=r"sum\.size"):
            contribute(group.identities[0], group.call, wrong)  # type: ignore[arg-type]


def test_a_seed_is_used_once_even_for_the_same_call_and_vector() -> None:
    group = Group(3, 2, least=2)
    (first, sent), (again, sent_again) = group.contributed([0, 0])
    assert sent != sent_again
    assert not set(first.sealed) & set(again.sealed)


def test_an_opener_that_is_silent_or_answers_wrongly_leaves_no_sum() -> None:
    group = Group(4, 2, least=3)
    parts = group.contributed(range(4))
    statements, masked = [s for s, _ in parts], [p for _, p in parts]
    answers = {one.name: group.opened(statements, i) for i, one in enumerate(group.openers)}
    with pytest.raises(ConfideError, match=r"sum\.opener-silent"):
        combine(group.call, masked, {"h00": answers["h00"]})
    with pytest.raises(ConfideError, match=r"sum\.opener-silent"):
        combine(group.call, masked, answers | {"h02": answers["h00"]})
    with pytest.raises(ConfideError, match=r"wire\.size"):
        combine(group.call, masked, answers | {"h00": answers["h00"][:-4]})
    wrong = combine(group.call, masked, answers | {"h00": bytes(len(answers["h00"]))})
    with pytest.raises(ConfideError, match=r"sum\.broken"):
        from_words(wrong, STEP, 4)


def test_messages_come_back_as_they_went_and_no_cut_one_is_taken() -> None:
    group = Group(4, 2, least=3)
    statements = tuple(s for s, _ in group.contributed(range(4)))
    data = b"".join(s.to_bytes() for s in statements)
    assert statements_from_bytes(data, 2) == statements
    assert statement_from_bytes(statements[0].to_bytes(), 2) == statements[0]
    told = b"".join(one.to_bytes() for one in group.openers)
    assert openers_from_bytes(told) == group.openers
    for cut in range(0, len(told), 97):
        if cut % (len(told) // 2):
            with pytest.raises(ConfideError, match=r"sum\."):
                openers_from_bytes(told[:cut])
    with pytest.raises(ConfideError, match=r"sum\.malformed"):
        statement_from_bytes(data, 2)
    with pytest.raises(ConfideError, match=r"sum\.malformed"):
        statement_from_bytes(b"", 2)


def fault(group: Group, chance: random.Random) -> str:
    """One random pattern of who drops, lies or is shown something else: what came of it."""
    members, openers = len(group.identities), len(group.openers)
    who = [i for i in range(members) if chance.random() > 0.3]
    parts = group.contributed(who)
    sent = [payload for _, payload in parts]
    if sent and chance.random() < 0.15:  # a holder sends other words than it signed
        place = chance.randrange(len(sent))
        sent[place] = bytes(len(sent[place]))
    answers = {}
    for opener in range(openers):
        if chance.random() < 0.1:
            continue
        shown = [s for s, _ in parts]
        if chance.random() < 0.15 and shown:
            shown.pop(chance.randrange(len(shown)))
        try:
            answers[group.identities[opener].name] = group.opened(shown, opener)
        except ConfideError as error:
            return error.code
    try:
        total = from_words(combine(group.call, sent, answers), STEP, len(who))
    except ConfideError as error:
        return error.code
    assert total.tolist() == group.vectors[who].sum(axis=0).tolist(), "a wrong sum"
    return "right"


def patterns(count: int, seed: int) -> set[str]:
    chance, found = random.Random(seed), set()
    groups = [Group(5, 2, least=3), Group(8, 3, least=5)]
    for _ in range(count):
        found.add(fault(chance.choice(groups), chance))
    return found


OUTCOMES = {"right", "sum.too-few", "sum.opener-silent", "sum.broken"}


def test_of_many_patterns_of_faults_none_gives_a_wrong_sum() -> None:
    assert patterns(150, seed=3) == OUTCOMES


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_of_ten_thousand_patterns_of_faults_none_gives_a_wrong_sum() -> None:
    assert patterns(10_000, seed=4) == OUTCOMES
