"""Who is in the SuperLink follows federation.toml: keys that count are registered, others are not.

Which node belongs to which key is noted in ``flower/members.json`` when the key is registered, as
Flower lists nodes without names. The note can be lost with the SuperLink's database and is then
made anew with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...common.errors import ConfideError
from ...common.machine.kit import fingerprint
from ...common.machine.paths import write_public
from ...common.masking.keys import Roster
from ...common.plans import is_shared
from ...common.settings import Settings
from ..senders import NAMELESS
from . import flower
from .federation import Federation, Holder, load_federation


@dataclass(frozen=True, kw_only=True)
class Member:
    """A registered key: whose it is, its fingerprint, and the SuperLink's node for it."""

    name: str
    key: str
    node: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """What ``follow`` did: ``registered`` or ``shut-out``, or could not do: ``not-registered`` and
    why."""

    what: str
    name: str
    node: int = 0
    code: str = ""


def follow(federation: Federation) -> list[Change]:
    """Make the SuperLink's nodes those of federation.toml; first shuts out, then lets in.

    A key that cannot be registered is told, and the others are: ``federation.key`` when its file is
    not the one that federation.toml names, ``federation.key-used`` when it was registered before.

    Raises:
        ConfideError: ``server.down``, ``server.flower``: nobody may be let in then.
    """
    there = {node.id for node in flower.nodes(federation) if node.status != "unregistered"}
    wanted = {holder.key: holder for holder in federation.active()}
    changes = []
    kept: list[Member] = []
    for member in members(federation):
        if member.node not in there:
            continue
        if member.key in wanted:
            kept.append(member)
        else:
            flower.unregister(federation, member.node)
            changes.append(Change(what="shut-out", name=member.name, node=member.node))
    # A node that no note explains was let in by somebody else.
    for node in sorted(there - {m.node for m in kept} - {c.node for c in changes}):
        flower.unregister(federation, node)
        changes.append(Change(what="shut-out", name=f"{NAMELESS}{node}", node=node))
    _note(federation, kept)
    known = {member.key for member in kept}
    for holder in (holder for holder in wanted.values() if holder.key not in known):
        try:
            member = _register(federation, holder)
        except ConfideError as error:
            if not error.code.startswith("federation."):
                raise
            changes.append(Change(what="not-registered", name=holder.name, code=error.code))
            continue
        kept.append(member)
        _note(federation, kept)
        changes.append(Change(what="registered", name=member.name, node=member.node))
    return changes


def members(federation: Federation) -> list[Member]:
    """Who was registered, as noted."""
    path = _path(federation)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [Member(**row) for row in rows]


def names(federation: Federation) -> Mapping[int, str]:
    """The holder's name for a node."""
    return {member.node: member.name for member in members(federation)}


def names_here() -> Callable[[], Mapping[int, str]] | None:
    """For a ServerApp: what ``names`` says now, each time it is asked, in the federation whose
    server started it; None where none did, as in a simulation.

    The server's own environment says so, and no setting of a run: whoever may start one cannot
    switch it off.
    """
    folder = os.environ.get(flower.FEDERATION)
    if folder is None:
        return None
    federation = load_federation(Path(folder))
    return lambda: names(federation)


def roster_here() -> Roster | None:
    """For a ServerApp, likewise: who may take part in a run's secure sums, as federation.toml has
    it when the run begins. A run keeps it."""
    folder = os.environ.get(flower.FEDERATION)
    return load_federation(Path(folder)).roster if folder is not None else None


def check_roster(settings: Settings, roster: Roster) -> None:
    """Refuse a run whose secure sums the members of the roster are too few for.

    Raises:
        ConfideError: ``sum.no-roster``.
    """
    least = settings.round.min_holders
    if is_shared(settings) and len(roster) < least:
        raise ConfideError(
            "sum.no-roster",
            f"privacy.trust = 'distributed' adds up what at least {least} holders sent"
            f" (round.min-holders), but {len(roster)} of this federation sent a signing key.",
            "Let each holder run `confide client enrol`, take its request by `confide server"
            " provision DIR --add NAME --request FILE` (--renew, if it is in), and let all"
            " administrators compare the roster.",
        )


def _register(federation: Federation, holder: Holder) -> Member:
    path = federation.public_key(holder.name)
    if not path.is_file() or fingerprint(path) != holder.key:
        raise ConfideError(
            "federation.key",
            f"{path} is not the key that federation.toml names for {holder.name}.",
            f"Restore it, or `confide server provision {federation.folder} --renew {holder.name}`.",
        )
    node = flower.register(federation, holder.name)
    return Member(name=holder.name, key=holder.key, node=node)


def _note(federation: Federation, kept: list[Member]) -> None:
    write_public(_path(federation), json.dumps([asdict(member) for member in kept]).encode())


def _path(federation: Federation) -> Path:
    return federation.folder / "flower" / "members.json"
