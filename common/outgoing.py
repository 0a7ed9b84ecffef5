"""Everything that leaves a holder, field by field, and what protects it.

A reply has no other field: a test compares this list with what is really sent, so that a new field
stays unclassified only until the tests run. The report may read it; nothing here imports anything
of confide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Protection(StrEnum):
    """By what a field is covered."""

    ACCOUNTED = "noised by the holder and charged to its ledger"
    PUBLIC = "known to the coordinator before it is sent"
    OUTSIDE = "outside the guarantee"


@dataclass(frozen=True)
class Outgoing:
    """A field of a message: ``of`` is the message or the part of one that has it."""

    of: str
    name: str
    protection: Protection
    why: str


_SENT = "the coordinator sent it"
_FLOWER = "Flower's own; it holds numbers of messages, nodes and times"
_COUNT = "with the public batch it tells how many records or persons the holder has"
_LEDGER = "it tells of the holder's other runs"

OUTGOING = (
    Outgoing(
        "update",
        "values",
        Protection.ACCOUNTED,
        "sums of clipped terms, of gradients or of what records are, with noise; with"
        " privacy.trust = off there is none, and the ledger is charged an infinite epsilon",
    ),
    Outgoing("update", "run", Protection.PUBLIC, _SENT),
    Outgoing("update", "round", Protection.PUBLIC, _SENT),
    Outgoing("update", "task_hash", Protection.PUBLIC, _SENT),
    Outgoing(
        "update",
        "schema",
        Protection.OUTSIDE,
        "one of a few digests that the coordinator knows; where a method admits several ranks it"
        " tells the one that the holder's policy allows",
    ),
    Outgoing("update", "encoding", Protection.PUBLIC, _SENT),
    Outgoing("update", "kind", Protection.PUBLIC, "it tells an update from a refusal"),
    Outgoing("update", "holder", Protection.OUTSIDE, "whoever coordinates sees who answers"),
    Outgoing("update", "receipt", Protection.OUTSIDE, "its parts are listed one by one"),
    Outgoing("receipt", "delta", Protection.PUBLIC, _SENT),
    Outgoing("receipt", "steps_run", Protection.OUTSIDE, "its parts are listed one by one"),
    Outgoing("receipt", "ledger_id", Protection.OUTSIDE, "a random number, to know it again"),
    Outgoing("receipt", "head", Protection.OUTSIDE, "a hash that nobody can invert"),
    Outgoing("receipt", "entries", Protection.OUTSIDE, _LEDGER),
    Outgoing("receipt", "epsilon", Protection.OUTSIDE, _LEDGER),
    Outgoing("receipt", "proven", Protection.OUTSIDE, _LEDGER),
    Outgoing("receipt", "runs", Protection.OUTSIDE, _LEDGER),
    Outgoing("receipt", "limit", Protection.OUTSIDE, "a number of the holder's policy"),
    Outgoing("steps", "steps", Protection.PUBLIC, "rounds that the holder took part in"),
    Outgoing("steps", "sampling_rate", Protection.OUTSIDE, _COUNT),
    Outgoing(
        "steps", "noise_multiplier", Protection.OUTSIDE, "calibrated to the rate, so that " + _COUNT
    ),
    Outgoing("refusal", "kind", Protection.PUBLIC, "it tells an update from a refusal"),
    Outgoing("refusal", "task_hash", Protection.PUBLIC, _SENT),
    Outgoing("refusal", "holder", Protection.OUTSIDE, "whoever coordinates sees who answers"),
    Outgoing(
        "refusal",
        "code",
        Protection.OUTSIDE,
        "a constant of the program that tells why; a policy, a file or the budget decides which",
    ),
    Outgoing("message", "run_id", Protection.PUBLIC, _SENT),
    Outgoing("message", "group_id", Protection.PUBLIC, _SENT),
    Outgoing("message", "message_type", Protection.PUBLIC, _SENT),
    Outgoing("message", "reply_to_message_id", Protection.PUBLIC, _SENT),
    Outgoing("message", "dst_node_id", Protection.PUBLIC, _SENT),
    Outgoing("message", "dst_task_id", Protection.PUBLIC, _SENT),
    Outgoing("message", "src_node_id", Protection.OUTSIDE, "whoever coordinates sees who answers"),
    Outgoing("message", "src_task_id", Protection.OUTSIDE, _FLOWER),
    Outgoing("message", "message_id", Protection.OUTSIDE, _FLOWER),
    Outgoing("message", "ttl", Protection.OUTSIDE, _FLOWER),
    Outgoing("message", "delivered_at", Protection.OUTSIDE, _FLOWER),
    Outgoing(
        "message",
        "created_at",
        Protection.OUTSIDE,
        "how long it took depends on the machine and on how many records were drawn",
    ),
)

# What other systems send and this one does not: no message has a field for it.
NOT_SENT = (
    ("the number of records", "sums are divided by the public batch, and every update counts once"),
    ("losses and metrics", "nothing but a sum with noise, if round.holder-metric asks for one"),
    ("counts of labels", "nothing but a sum with noise, if task.class-weights = 'counted'"),
    ("when training stopped", "the number of steps is the plan's, whatever the text"),
    ("sizes of drawn batches, norms", "nothing about a batch is returned by the trainer"),
    ("trials of tuning", "each is a run, which the ledger is charged for like any other"),
    ("errors", "an exception leaves as a code, and nothing that is printed or logged leaves"),
)
