"""``confide report verify``: make the report of a run again, and name every difference.

What ``build`` makes of metrics.jsonl, config.toml and the ledgers is made once more and held
against report.json; what people read, the page and the adapter's card, is made once more from that
and held against the files. Each ledger, of the folder or handed in, is held against the receipts
that its holder gave. A thing that cannot be checked is listed as not checked, and never counts as
agreeing: a holder whose ledger is not at hand, whose figures are then its own word; words and pages
that another version of confide wrote. Reads only, and never needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...common.errors import ConfideError
from ...common.privacy.accountant import epsilon_pld
from ...common.privacy.steps import covers
from . import finite, load_report, plain
from .accounts import Account, accounts_of
from .build import build_report, shown_by
from .checks import NOT_CHECKED, WHOLE
from .ledgers import LedgerFacts, read_ledger, read_ledgers
from .reading import RunRecord, read_run

TOLERANCE = 1e-6  # relative; both sides run the same accountant on the same events
MOST_SHOWN = 60  # characters of a value
_ABSENT = object()
_NAMES = ("name", "of", "what")  # what a part of a list is called by


def differences(made: Any, told: Any) -> list[str]:
    """Where ``told`` is not what was ``made`` again: the place, and both values."""
    return list(_walk((), made, told))


def same(one: Any, other: Any) -> bool:
    """Equal words and shapes, numbers within the tolerance."""
    return not differences(one, other)


def _walk(place: tuple[str, ...], made: Any, told: Any) -> Iterator[str]:
    if isinstance(made, Mapping) and isinstance(told, Mapping):
        for key in dict.fromkeys([*made, *told]):
            yield from _walk((*place, str(key)), made.get(key, _ABSENT), told.get(key, _ABSENT))
    elif _is_list(made) and _is_list(told):
        yield from _parts(place, made, told)
    elif not _equal(made, told):
        where = plain(" / ".join(place))
        yield f"{where}: made again it is {_shown(made)}, the report says {_shown(told)}"


def _parts(place: tuple[str, ...], made: Sequence[Any], told: Sequence[Any]) -> Iterator[str]:
    """Parts with names are found by them, others by their place."""
    one, other = _named(made), _named(told)
    if one is not None and other is not None:
        if list(one) != list(other) and set(one) == set(other):
            yield f"{plain(' / '.join(place))}: in another order"
        yield from _walk(place, one, other)
        return
    for at in range(max(len(made), len(told))):
        mine, theirs = (parts[at] if at < len(parts) else _ABSENT for parts in (made, told))
        yield from _walk((*place, str(at + 1)), mine, theirs)


def _named(parts: Sequence[Any]) -> dict[str, Any] | None:
    """By name, where every part has one of its own."""
    found = {}
    for part in parts:
        name = _name(part)
        if name is None or name in found:
            return None
        found[name] = part
    return found


def _name(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    return next((str(part[key]) for key in _NAMES if isinstance(part.get(key), str)), None)


def _equal(one: Any, other: Any) -> bool:
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-12)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    text = plain(text)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


PRV_ERROR = 0.02  # and a thousandth of epsilon: PLD and PRV are two discretisations of one number
_WORDS = ("claim", "released", "not_protected", "checks", "findings")  # they have sentences


@dataclass(frozen=True, kw_only=True)
class HolderVerdict:
    """One holder: its epsilon from the ledger alone, or None where there was no ledger."""

    name: str
    epsilon_pld: float | None
    reported: float | None
    differences: tuple[str, ...] = ()

    @property
    def checked(self) -> bool:
        return self.epsilon_pld is not None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome for a run. ``notes`` is to be known, and no difference."""

    run: str
    holders: tuple[HolderVerdict, ...]
    differences: tuple[str, ...]
    not_checked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing differs, though not everything may have been checked."""
        return not self.differences

    @property
    def complete(self) -> bool:
        return not self.not_checked

    @property
    def status(self) -> int:
        """Of the command: 0 all agrees, 1 something differs, 3 not all could be checked."""
        return 1 if not self.agrees else 0 if self.complete else 3

    @property
    def headline(self) -> str:
        """How much was checked, in one sentence."""
        of = f"{sum(h.checked for h in self.holders)} of {len(self.holders)} holders"
        missing = sum(not h.checked for h in self.holders)
        if not self.agrees:
            return f"{len(self.differences)} differences; the ledgers of {of} were checked."
        if missing:
            return f"No difference, but {missing} of {len(self.holders)} holders not checked."
        if not self.complete:
            return f"No difference, with the ledgers of {of}; but not all could be checked."
        return f"The report is what the run folder and the ledgers of {of} give."

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "agrees": self.agrees,
            "complete": self.complete,
            "headline": self.headline,
            "differences": list(self.differences),
            "not_checked": list(self.not_checked),
            "notes": list(self.notes),
            "holders": [
                {
                    "name": holder.name,
                    "checked": holder.checked,
                    "epsilon_pld": finite(holder.epsilon_pld),
                    "reported": holder.reported,
                    "differences": list(holder.differences),
                }
                for holder in self.holders
            ],
        }


def verify_run(folder: Path, ledgers: Sequence[Path] = ()) -> Verdict:
    """Make the report of a run folder again.

    Args:
        ledgers: files, or folders of them, from holders whose ledgers are not in the run folder.

    Raises:
        ConfideError: ``report.missing``, ``report.corrupt``, ``report.schema`` where there is
            nothing to verify, ``report.ledger`` for a path that holds no ledger.
    """
    report = load_report(folder)
    handed = _files(ledgers)
    try:
        run = read_run(folder)
        later = _by_receipt(report)
        made = build_report(folder, prv=False, without=later)
    except ConfideError as error:
        text = f"the report cannot be made again [{error.code}]: {error.message}"
        return Verdict(run=str(report.get("run")), holders=(), differences=(text,))
    delta = run.settings.privacy.delta
    there = read_ledgers(folder, run.id, delta)
    given = [read_ledger(path, path.name, run.id, delta) for path in handed]
    given += [facts for name, facts in there.items() if name in later]
    accounts = accounts_of(run, {k: facts for k, facts in there.items() if k not in later})
    holders = _holders(run, accounts, given, report)
    found, unchecked = _compared(folder, made, report)
    found += [f"{one.name}: {text}" for one in holders for text in one.differences]
    more, notes = _strangers(run, accounts, given)
    found += more
    unchecked += [f"{h.name}: its ledger is not at hand" for h in holders if not h.checked]
    if {WHOLE: NOT_CHECKED}.items() <= {c["name"]: c["state"] for c in made["checks"]}.items():
        unchecked.append("whether metrics.jsonl, config.toml and adapter are those of the run")
    return Verdict(
        run=run.id,
        holders=holders,
        differences=tuple(dict.fromkeys(found)),
        not_checked=tuple(unchecked),
        notes=tuple(notes),
    )


def _by_receipt(report: Mapping[str, Any]) -> set[str]:
    """Holders whose ledgers the report did not have: one that lies in the folder was put there
    later, and is held against the receipts like one that is handed in."""
    rows = report.get("holders")
    told = (row for row in rows or () if isinstance(row, dict))
    return {str(row.get("name")) for row in told if row.get("ledger") is None}


def _files(paths: Sequence[Path]) -> list[Path]:
    found = []
    for path in paths:
        files = sorted(path.rglob("*.sqlite")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise ConfideError(
                "report.ledger",
                f"There is no ledger at {path}.",
                "Give a ledger file (*.sqlite) of a holder, or a folder of such files.",
            )
        found += files
    return found


# --- the report and what shows it ---


def _compared(
    folder: Path, made: Mapping[str, Any], report: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Differences, and what could not be compared."""
    ours = made["software"].get("confide") == __version__
    one, other = (made, report) if ours else (_figures(made, report), _figures(report, made))
    found = differences(_without_prv(one), _without_prv(other)) + _second_opinions(made, report)
    if not ours:
        wrote = made["software"].get("confide")
        told = f"what another version of confide ({wrote}) wrote, by this one ({__version__}):"
        return found, [f"{told} words, page and card"]
    # Of the report as it stands: where that is another one, this says whether the page shows it.
    try:
        pages = shown_by(folder, dict(report))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [*found, f"report.json lacks what a page needs ({type(error).__name__})"], []
    if not (folder / "adapter").is_dir():
        found.append("adapter: it is gone")
    return found + [text for name, page in pages.items() for text in _page(folder, name, page)], []


def _figures(report: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A report without its sentences, and without fields that the other report lacks."""
    both = {key: value for key, value in report.items() if key in other and key not in _WORDS}
    claims = (report.get("claim"), other.get("claim"))
    if all(isinstance(claim, Mapping) for claim in claims):
        both["claim"] = _without_words(claims[0], claims[1])
    return both


def _without_words(value: Any, other: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        kept = {key: _without_words(value[key], other[key]) for key in value if key in other}
        return {key: one for key, one in kept.items() if not isinstance(one, str)}
    if isinstance(value, list):
        return [one for one in value if not isinstance(one, str)]
    return value


def _page(folder: Path, name: str, page: str) -> list[str]:
    path = folder / name
    if not path.is_file():
        return [f"{name}: it is gone"]
    return [] if path.read_bytes() == page.encode() else [f"{name}: it does not show the report"]


def _without_prv(report: Mapping[str, Any]) -> dict[str, Any]:
    """PRV would need torch; it is compared with the PLD figure instead."""
    rows = report.get("holders")
    if not isinstance(rows, list):
        return dict(report)
    bare = [{**row, "epsilon_prv": None} if isinstance(row, dict) else row for row in rows]
    return {**report, "holders": bare}


def _second_opinions(made: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    rows = report.get("holders")
    told = {row.get("name"): row for row in rows or () if isinstance(row, dict)}
    found = []
    for row in made["holders"]:
        prv, pld = told.get(row["name"], {}).get("epsilon_prv"), row["epsilon_pld"]
        if prv is None:
            continue
        near = isinstance(prv, float) and pld and abs(prv - pld) <= PRV_ERROR + 1e-3 * pld
        if not near:
            found.append(f"holders / {row['name']} / epsilon_prv: {prv!r:.20} is not near PLD")
    return found


# --- the ledgers ---


def _holders(
    run: RunRecord,
    accounts: Sequence[Account],
    given: Sequence[LedgerFacts],
    report: Mapping[str, Any],
) -> tuple[HolderVerdict, ...]:
    rows = report.get("holders")
    told = {str(row.get("name")): row for row in rows or () if isinstance(row, dict)}
    names = {account.name for account in accounts}
    known = [_holder(run, account, given, told.get(account.name, {})) for account in accounts]
    strangers = [
        HolderVerdict(name=name, epsilon_pld=None, reported=_number(row.get("epsilon_pld")))
        for name, row in told.items()
        if name not in names
    ]
    return tuple(sorted((*known, *strangers), key=lambda holder: holder.name))


def _holder(
    run: RunRecord, account: Account, given: Sequence[LedgerFacts], row: Mapping[str, Any]
) -> HolderVerdict:
    """What the ledger of a holder, in the folder or handed in, says of its receipts."""
    facts = account.ledger or _own(account, given)
    reported = _number(row.get("epsilon_pld"))
    if facts is None or facts.fault:
        gone = ["its ledger is gone, although the report relies on it"] if row.get("ledger") else []
        return HolderVerdict(
            name=account.name,
            epsilon_pld=None,
            reported=reported,
            differences=(facts.fault,) if facts else tuple(gone),
        )
    return HolderVerdict(
        name=account.name,
        epsilon_pld=epsilon_pld(facts.steps, run.settings.privacy.delta),
        reported=reported,
        differences=tuple(_against(run, account, facts)),
    )


def _own(account: Account, given: Sequence[LedgerFacts]) -> LedgerFacts | None:
    receipt = account.newest
    found = (facts for facts in given if receipt and facts.ledger_id == receipt.ledger_id)
    return next(found, None)


def _against(run: RunRecord, account: Account, facts: LedgerFacts) -> list[str]:
    """Differences between a ledger and the receipts that the report rests on."""
    delta = run.settings.privacy.delta
    found = facts.against(account.newest, run.unit_in_words)
    if account.history.rounds + account.history.sums > facts.released:
        found.append(
            f"{account.history.rounds + account.history.sums} updates were accepted, its ledger has"
            f" {facts.released} releases"
        )
    found += [
        f"its charges were made at delta {other:g}, the report is at {delta:g}"
        for other in sorted(facts.deltas - {delta})
    ]
    if account.ledger is None:  # the report rests on the receipts alone
        found += _beyond(account, facts)
    return found


def _beyond(account: Account, facts: LedgerFacts) -> list[str]:
    """What a ledger that was handed in has beyond its holder's receipt."""
    found, told = [], account.newest
    if not covers(account.steps, facts.steps):
        found.append("its ledger has steps of this run that the report does not have")
    figures = (("proven", facts.proven), ("epsilon", facts.epsilon), ("runs", facts.runs))
    for name, value in figures:
        receipt = getattr(told, name) if told else value
        if value > receipt * (1 + 1e-6):
            found.append(f"its ledger's {name} is {value:.6g}, its receipt's {receipt:.6g}")
    return found


def _strangers(
    run: RunRecord, accounts: Sequence[Account], given: Sequence[LedgerFacts]
) -> tuple[list[str], list[str]]:
    """Ledgers that no holder of the report has, and notes on those that went on."""
    ids = {account.newest.ledger_id for account in accounts if account.newest}
    found: list[str] = []
    notes: list[str] = []
    for facts in given:
        if facts.fault:
            found.append(f"{facts.path}: {facts.fault}")
        elif facts.ledger_id not in ids:
            what = "has charges of this run, and is of no holder of the report"
            charged = bool(facts.steps)
            (found if charged else notes).append(
                f"{facts.path}: it {what if charged else 'is the ledger of no holder of this run'}"
            )
    notes += [
        f"{facts.path}: {facts.later} other runs were charged since; the claim of today is that of"
        " the newest one"
        for facts in (*given, *(a.ledger for a in accounts if a.ledger))
        if facts.later
    ]
    return found, notes


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
