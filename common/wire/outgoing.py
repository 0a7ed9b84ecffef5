"""Everything that leaves a holder, field by field, and what protects it: the one list.

A reply has no other field: a test compares this list with what is really sent, so that a new field
stays unclassified only until the tests run. For people the fields are gathered into ``PARTS``, of
which the consent of ``confide client join``, the report's words and the table of docs/deploy.md are
made. Nothing here imports anything of confide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Protection(StrEnum):
    """By what a field is covered."""

    ACCOUNTED = "noised by the holder and charged to its ledger"
    PUBLIC = "known to the coordinator before it is sent"
    OUTSIDE = "outside the guarantee"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What people are told of together.

    Attributes:
        title: its heading in the report.
        what: what leaves, to be read behind "a coordinator can see".
        why: why its protection is what it is.
    """

    title: str
    what: str
    protection: Protection
    why: str


CHANGE, SUMS, ANSWERS = "change", "sums", "answers"
RECEIPT, LIMIT, TIMES, ECHO, KEYS = "receipt", "limit", "times", "echo", "keys"

# In the order in which people are told.
PARTS = {
    CHANGE: Part(
        title="The change of the adapter",
        what="in each round one update: how the numbers of a small adapter should change, and its"
        " size, which is the same whatever the text",
        protection=Protection.ACCOUNTED,
        why="each unit's part in it is clipped, and the noise that the policy demands is added on"
        " the holder's machine, all of it or, in a secure sum, a share of it, and then masked so"
        " that the sum over many holders alone can be seen; without noise only where the policy has"
        " allow-unprotected",
    ),
    SUMS: Part(
        title="Noisy sums",
        what="when a run asks and the policy has allow-sums: how many records each class has, or"
        " how well the adapter does on the text, as sums with noise",
        protection=Protection.ACCOUNTED,
        why="no unit moves a sum by more than 1, and the holder adds the noise and charges it",
    ),
    ANSWERS: Part(
        title="Which holders took part, and why one did not",
        what="that a holder is connected, its name, key and address, whether it answers, and of a"
        " refusal the code, such as policy.max-epsilon: so by asking one finds out what policy and"
        " contract say",
        protection=Protection.OUTSIDE,
        why="whoever coordinates sees who answers, and at which rank where a method admits several;"
        " never does the text decide",
    ),
    RECEIPT: Part(
        title="The ledger's length, its totals and the number of runs in each receipt",
        what="with each update the ledger's receipt: its id, its last hash, how many entries and"
        " runs it has, and the epsilon of all runs together",
        protection=Protection.OUTSIDE,
        why="they tell of the holder's other runs",
    ),
    LIMIT: Part(
        title="The holder's limit on epsilon in each receipt",
        what="with it the limit that the policy puts on all runs together (max-epsilon)",
        protection=Protection.OUTSIDE,
        why="it is a number of the holder's policy",
    ),
    KEYS: Part(
        title="Keys and masks of secure sums",
        what="where the policy names a roster, the public halves of the holder's keys, what it"
        " signs with them, and, if it opens a sum, the sum of the masks of all who contributed",
        protection=Protection.OUTSIDE,
        why="they are random numbers, and which are sent follows from the request alone",
    ),
    TIMES: Part(
        title="The time of each answer",
        what="how long an answer took",
        protection=Protection.OUTSIDE,
        why="it depends on the machine and on how many records were drawn",
    ),
    ECHO: Part(
        title="The settings of the run, and what else the coordinator sent",
        what="of each message the run, round, settings and plan that it answers",
        protection=Protection.PUBLIC,
        why="the coordinator chose them, and they are the same at every holder",
    ),
}


@dataclass(frozen=True)
class Outgoing:
    """A field of a message: ``of`` is the message or the part of one that has it, ``part`` says
    where of ``PARTS`` people are told of it."""

    of: str
    name: str
    protection: Protection
    part: str
    why: str


def _public(of: str, name: str, why: str = "the coordinator sent it") -> Outgoing:
    return Outgoing(of, name, Protection.PUBLIC, ECHO, why)


def _outside(of: str, name: str, part: str, why: str) -> Outgoing:
    return Outgoing(of, name, Protection.OUTSIDE, part, why)


_WHO = "whoever coordinates sees who answers"
_FLOWER = "Flower's own; it holds numbers of messages, nodes and times"
_PLAN = "it follows from the settings, which the coordinator sent, and is the same at every holder"
_LEDGER = "it tells of the holder's other runs"
_PARTS = "its parts are listed one by one"
_KIND = "it tells an update, a refusal, and the yes of who was only asked apart"

OUTGOING = (
    Outgoing(
        "update",
        "values",
        Protection.ACCOUNTED,
        CHANGE,
        "sums of clipped terms, of gradients or of what records are, with noise; with"
        " privacy.trust = off there is none, and the ledger is charged an infinite epsilon",
    ),
    _public("update", "run"),
    _public("update", "round"),
    _public("update", "task_hash"),
    _outside(
        "update",
        "schema",
        ANSWERS,
        "one of a few digests that the coordinator knows; where a method admits several ranks it"
        " tells the one that the holder's policy allows",
    ),
    _public("update", "encoding"),
    _public("update", "kind", _KIND),
    _outside("update", "holder", ANSWERS, _WHO),
    _outside("update", "receipt", RECEIPT, _PARTS),
    _public("receipt", "delta"),
    _outside("receipt", "steps_run", RECEIPT, _PARTS),
    _outside("receipt", "ledger_id", RECEIPT, "a random number, to know it again"),
    _outside("receipt", "head", RECEIPT, "a hash that nobody can invert"),
    _outside("receipt", "entries", RECEIPT, _LEDGER),
    _outside("receipt", "epsilon", RECEIPT, _LEDGER),
    _outside("receipt", "proven", RECEIPT, _LEDGER),
    _outside("receipt", "unmasked", RECEIPT, _LEDGER),
    _outside("receipt", "runs", RECEIPT, _LEDGER),
    _outside("receipt", "limit", LIMIT, "a number of the holder's policy"),
    _public("steps", "steps", "rounds that the holder took part in"),
    _public("steps", "sampling_rate", _PLAN),
    _public("steps", "noise_multiplier", _PLAN),
    _public("refusal", "kind", _KIND),
    _public("refusal", "task_hash"),
    _outside("refusal", "holder", ANSWERS, _WHO),
    _outside(
        "refusal",
        "code",
        ANSWERS,
        "a constant of the program that tells why; policy, contract, budget or model decide which,"
        " and never what the text holds",
    ),
    _public("ready", "kind", _KIND),
    _public("ready", "task_hash"),
    _outside("ready", "holder", ANSWERS, _WHO),
    _outside("ready", "card", KEYS, "public keys, and a signature that they are this holder's"),
    _outside("update", "statement", KEYS, "sealed seeds of masks, drawn anew, and a signature"),
    _public("opening", "kind", _KIND),
    _public("opening", "task_hash"),
    _outside("opening", "holder", ANSWERS, _WHO),
    _outside("opening", "values", KEYS, "masks alone: no contribution is in them"),
    _public("message", "run_id"),
    _public("message", "group_id"),
    _public("message", "message_type"),
    _public("message", "reply_to_message_id"),
    _public("message", "dst_node_id"),
    _public("message", "dst_task_id"),
    _outside("message", "src_node_id", ANSWERS, _WHO),
    _outside("message", "src_task_id", TIMES, _FLOWER),
    _outside("message", "message_id", TIMES, _FLOWER),
    _outside("message", "ttl", TIMES, _FLOWER),
    _outside("message", "delivered_at", TIMES, _FLOWER),
    _outside(
        "message",
        "created_at",
        TIMES,
        "how long it took depends on the machine and on how many records were drawn",
    ),
)

# What other systems send and this one does not: no message has a field for it.
NOT_SENT = (
    (
        "the text",
        "not a record, label or person of it, and no file's name; of columns and labels only"
        " whether they are those that a request names",
    ),
    ("the number of records", "sums are divided by the public batch, and every update counts once"),
    ("losses and metrics", "nothing but a sum with noise, if round.holder-metric asks for one"),
    ("counts of labels", "nothing but a sum with noise, if task.class-weights = 'counted'"),
    ("when training stopped", "the number of steps is the plan's, whatever the text"),
    ("sizes of drawn batches, norms", "nothing about a batch is returned by the trainer"),
    ("trials of tuning", "each is a run, which the ledger is charged for like any other"),
    ("errors", "an exception leaves as a code, and nothing that is printed or logged leaves"),
)


# What a run shows besides.
_FROM_NO_HOLDER = (
    ("The base model and the adapter at the start", "they hold no private text"),
    ("Scores and loss by round", "measured by the coordinator on public held-out text"),
)


def not_accounted() -> tuple[tuple[str, str], ...]:
    """Title and reason of all that leaves outside the guarantee, for the report."""
    outside = (part for part in PARTS.values() if part.protection is Protection.OUTSIDE)
    return tuple((part.title, part.why) for part in outside)


def public() -> tuple[tuple[str, str], ...]:
    """Title and reason of all that was known before a holder sent it or comes from no holder, for
    the report."""
    known = (part for part in PARTS.values() if part.protection is Protection.PUBLIC)
    return (*((part.title, part.why) for part in known), *_FROM_NO_HOLDER)


def in_words(*, unit: str, sums: bool, unprotected: bool) -> list[str]:
    """What leaves a holder under its policy, a sentence each, for who says yes to it.

    Args:
        unit: what the policy's contract protects: record or person.
        sums, unprotected: ``allow-sums`` and ``allow-unprotected``.
    """
    change = f"{_sentence(CHANGE)} Each {unit}'s part in it is cut to a length and hidden in noise"
    bare = ", EXCEPT in runs without noise, which this policy ALLOWS" if unprotected else ""
    asked = (
        "when a run asks: sums over your text, of how many records each class has or of how well"
        f" the adapter does on it. No {unit} moves one by more than 1, and noise is added on this"
        f" machine{bare}. Each is charged to the ledger."
    )
    told = [f"{change} on this machine{bare}.", *([asked] if sums else [])]
    return told + [
        f"{_sentence(key)} {_capital(PARTS[key].why)}."
        for key in (ANSWERS, RECEIPT, LIMIT, KEYS, TIMES)
    ]


def table() -> list[str]:
    """What a coordinator can and cannot see, as lines of Markdown."""
    seen = [f"| {p.what} | {p.protection}: {p.why} |" for p in PARTS.values()]
    unseen = [f"| {what} | {why} |" for what, why in NOT_SENT]
    return [
        "| it can see | what covers it |",
        "|---|---|",
        *seen,
        "",
        "| it cannot see | |",
        "|---|---|",
        *unseen,
    ]


def _sentence(key: str) -> str:
    return f"{PARTS[key].what}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
