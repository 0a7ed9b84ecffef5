"""What an administrator says yes to when joining: made from kit, policy, contract and ledger.

What leaves is told from the one list of it (``common.wire.outgoing``), and each limit of the policy
has its sentence here: a limit without one fails a test. Read by the user who reads the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...common.machine.installed import code_hash
from ...common.privacy.ledger import Ledger
from ...common.tasks import TASKS
from ...common.wire.outgoing import NOT_SENT, in_words
from ..guard.contract import Contract
from ..guard.policy import Policy
from ..site.budget import left_of, read_spending
from ..text.taken import identity_of

if TYPE_CHECKING:
    from ..site.join import Joining
    from ..text.check_data import Findings


@dataclass(frozen=True)
class _Says:
    """A limit's sentence, under its heading; nothing for a value that is not worth one."""

    limit: str
    heading: str
    words: Callable[[Any], str]


_BUDGET = "The budget of this text"
_STEP = "Each step"
_WORK = "The work of a run"
_MAY = "A run may"
_SUM = "A secure sum"
_ASK = "Your own word"


def _words(template: str) -> Callable[[Any], str]:
    return lambda value: template.format(value)


def _either(yes: str, no: str) -> Callable[[Any], str]:
    return lambda value: yes if value else no


def _list(template: str, otherwise: str) -> Callable[[Any], str]:
    return lambda values: template.format(", ".join(values) or otherwise)


_SENTENCES = (
    _Says("max_epsilon", _BUDGET, _words("epsilon up to {:g} over all runs together")),
    _Says("max_epsilon_per_run", _BUDGET, _words("up to {:g} in one run")),
    _Says("max_delta", _BUDGET, _words("delta up to {:g}")),
    _Says("min_noise_multiplier", _STEP, _words("has noise of at least {:g} times the clip norm")),
    _Says("max_clip", _STEP, _words("cuts to a length of at most {:g}")),
    _Says("max_sampling_rate", _STEP, _words("uses at most a share of {:g} of the text")),
    _Says("max_batch", _STEP, _words("divides sums by at most {:g}")),
    _Says("max_records_per_person", _STEP, _words("uses at most {:g} records of a person")),
    _Says("max_rounds", _WORK, _words("up to {:g} rounds")),
    _Says("max_steps_per_round", _WORK, _words("{:g} steps a round")),
    _Says("max_steps_per_run", _WORK, _words("{:g} steps in all")),
    _Says("max_passes", _WORK, _words("{:g} passes through the text")),
    _Says("max_requests_per_day", _WORK, _words("{:g} requests a day")),
    _Says("max_length", _WORK, _words("texts of {:g} tokens")),
    _Says("max_copies", _WORK, _words("{:g} copies of a record")),
    _Says("max_dropout", _WORK, _words("dropout of {:g}")),
    _Says("max_rank", _WORK, _words("rank {:g} of LoRA")),
    _Says("dtypes", _MAY, _list("reckon in {}", "nothing")),
    _Says("base_models", _MAY, _list("use the base models {}", "in the cache of this machine")),
    _Says("coordinators", _MAY, _list("come from {}", "a coordinator of any name")),
    _Says(
        "allow_sums",
        _MAY,
        _either(
            "ask for NOISY SUMS of classes and scores, each charged",
            "ask for no sums: no count and no score leaves, not even with noise",
        ),
    ),
    _Says(
        "allow_unprotected",
        _MAY,
        _either(
            "train WITHOUT NOISE, which may reveal every record and spends the whole budget",
            "not train without noise",
        ),
    ),
    _Says(
        "allow_any_model",
        _MAY,
        _either("name ANY base model, even a folder of this machine or a download", ""),
    ),
    _Says(
        "allow_any_data", _MAY, _either("read ANY column for any task, where [data] is missing", "")
    ),
    _Says(
        "roster",
        _SUM,
        lambda roster: (
            f"is among the members of the roster {roster}"
            if roster
            else "is never taken part in: the policy has no roster"
        ),
    ),
    _Says(
        "openers",
        _SUM,
        lambda names: f"is opened with the help of this holder{''.join(f' or {n}' for n in names)}",
    ),
    _Says("min_contributions", _SUM, _words("adds up at least {:g} holders")),
    _Says("colluding", _SUM, _words("bears {:g} others who tell the coordinator all")),
    _Says(
        "max_epsilon_unmasked",
        _SUM,
        _words("may be worth epsilon {:g} over all runs if every mask fails"),
    ),
    _Says(
        "allow_any_roster",
        _SUM,
        _either("MAY HAVE ANY MEMBERS, even all of the coordinator's own making", ""),
    ),
    _Says(
        "ask_before_run",
        _ASK,
        _either(
            "each run waits for your yes (`confide client runs`, `allow`, `deny`)",
            "runs start without asking you; `confide client deny` says no to one, at any time",
        ),
    ),
)
# What has lines of its own.
_ELSEWHERE = ("data",)


def plain_words(joining: Joining, found: Findings, policy: Policy, contract: Contract) -> list[str]:
    """What an administrator says yes to, a line each."""
    kit = joining.kit
    people = "" if found.persons is None else f" of {found.persons} persons"
    told = in_words(
        unit=contract.unit, sums=policy.allow_sums, unprotected=policy.allow_unprotected
    )
    return [
        f"{kit.name} joins the coordinator at {kit.fleet} (kit good until {kit.expires}).",
        f"Text: {found.file}, {found.records} records{people}. This count is shown here alone.",
        *_of_ledger(joining, policy),
        "",
        "What will leave this machine, in a round that the policy allows:",
        *(f"  - {line}" for line in told),
        "What no message has a field for:",
        *(f"  - {what}: {why}" for what, why in NOT_SENT),
        "",
        "What [data] of the policy says your text is; nothing else of it is read:",
        *(f"  - {line}" for line in of_contract(contract)),
        "",
        "What the policy allows on this text:",
        *(f"  - {line}" for line in of_policy(policy)),
        "",
        "Coordinator code allowed to run here (in the process without text), by SHA-256:",
        *(f"  - {digest}" for digest in kit.bundles),
        "It holds names and settings. What trains is the confide installed here, by SHA-256, which"
        " each charge books:",
        f"  - {code_hash()}",
        *_of_users(joining),
    ]


def of_policy(policy: Policy) -> list[str]:
    """The limits, a line for each heading."""
    under: dict[str, list[str]] = {}
    for says in _SENTENCES:
        words = says.words(getattr(policy, says.limit))
        under.setdefault(says.heading, []).extend([words] if words else [])
    return [f"{heading}: {'; '.join(words)}." for heading, words in under.items()]


def of_contract(contract: Contract) -> list[str]:
    """What the text is, as far as runs may know it."""
    c = contract
    columns = {"text": c.text, "target": c.target, "person": c.person}
    named = ", ".join(f"{what} in {column!r}" for what, column in columns.items() if column)
    lines = [f"columns: {named}; format: {c.format}", f"protected is each {c.unit}"]
    lines.append(f"learnt may be: {', '.join(c.tasks) or 'nothing'}")
    if c.labels:
        lines.append(f"labels: {', '.join(c.labels)}")
    if any(TASKS[kind].scale for kind in c.tasks):
        lines.append(f"the scale: {c.low:g} to {c.high:g}")
    return lines


def _of_ledger(joining: Joining, policy: Policy) -> list[str]:
    if joining.new_ledger:
        return [f"Ledger: a new one, {joining.ledger}, which knows of nothing spent before."]
    left = left_of(read_spending(joining.ledger), policy)
    lines = [f"Ledger: {joining.ledger}", *(f"  - {one.in_words()}" for one in left)]
    with Ledger.open(joining.ledger, create=False) as ledger:
        known, key = ledger.identity, ledger.identity_key
    if known and known != identity_of(joining.data.read_bytes(), key):
        lines.append(
            "  ! It was last used with other text than this file holds now. If the file was changed"
            " or added to, that is right; if the ledger is of another text, name the right one."
        )
    return lines


def _of_users(joining: Joining) -> list[str]:
    if joining.resident and joining.gateway:
        return [
            "",
            f"The text is read by the user {joining.resident.name}, without a network; the network"
            f" is used by {joining.gateway.name}, without the text.",
        ]
    return [
        "",
        "WARNING: both processes run as the same user, since root did not start this. If the"
        " coordinator's code were hostile, nothing but its pinned SHA-256 would keep it from the"
        " text. Start as root with two users to keep them apart.",
    ]
