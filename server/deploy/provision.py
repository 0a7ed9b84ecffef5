"""Make a federation of real holders, and change who is in it.

Every change is one new federation.toml, written after the keys that it names; the running server
follows it within seconds. Nothing is ever overwritten but what ``renew`` is asked to renew.

A holder's kit is what its administrator gets, in one folder; ``common/machine/kit.py`` reads it. It
holds no secret: a holder makes its keys itself, and sends a request with their public halves
(``confide client enrol``). Without a request the key that a holder connects by is made here and put
into the kit, for a trial on one machine: whoever has this folder can then speak in the holder's
name. What signs secure sums is never made here, so that none takes place with such a holder.

A kit has no policy: that is the holder's own, which ``confide client init`` writes for its text,
and a renewed kit that is unpacked over the old one leaves it as it was.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import tomli_w

from ...common.errors import ConfideError
from ...common.machine.kit import KEY_FILE, POLICY_FILE, PUBLIC_FILE, fingerprint, write_holder_key
from ...common.machine.paths import write_public
from ...common.masking.enrolment import Enrolment
from .bundle import bundle_hash, write_app
from .door import write_door
from .federation import (
    FILE_NAME,
    Federation,
    Holder,
    check_holder,
    check_host,
    check_port,
)
from .flower import write_home
from .keys import write_ca, write_door_certificate

HOLDER_DAYS = 365
PORT = 8443  # the SuperLink has the next one
_MOST_HOLDERS = 1000


def provision(
    folder: Path,
    *,
    host: str,
    holders: int = 0,
    port: int = PORT,
    superlink_port: int | None = None,
) -> Federation:
    """Make a federation, empty until holders are added; or of so many ``holders``, named holder-1,
    holder-2 and so on, whose keys are made here, for a trial on one machine.

    Raises:
        ConfideError: ``provision.exists``, ``provision.holders``, ``provision.host`` or
            ``provision.port``.
    """
    folder = folder.expanduser().resolve()
    if not 0 <= holders <= _MOST_HOLDERS:
        raise ConfideError(
            "provision.holders", f"--holders {holders} is outside [0, {_MOST_HOLDERS}]."
        )
    if (folder / FILE_NAME).exists() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfideError(
            "provision.exists",
            f"{folder} exists already, and is never overwritten.",
            "Use --add, --renew or --revoke to change it, or name another folder.",
        )
    empty = Federation(
        folder=folder,
        host=check_host(host),
        port=check_port(port),
        superlink_port=check_port(port + 1 if superlink_port is None else superlink_port),
        bundle="0" * 64,
    )
    _make_private(folder)
    write_ca(folder / "ca" / "ca.key", empty.ca, empty.name)
    _certify(empty)
    write_app(empty.app)
    write_home(empty)
    write_door(empty)
    federation = replace(empty, bundle=bundle_hash(empty))
    for number in range(1, holders + 1):
        federation = _with_new_key(federation, f"holder-{number}")
    federation.save()
    return federation


def add(federation: Federation, name: str, request: Enrolment | None = None) -> Federation:
    """One holder more, by the keys of its request; without one, by a key that is made here.

    Raises:
        ConfideError: ``provision.name``, ``provision.holder`` when the name is taken; also the
            name of a revoked holder is, since reports have called somebody by it;
            ``provision.request`` or ``provision.key-used`` for a request that does not fit.
    """
    if check_holder(name) in federation.holders:
        raise ConfideError(
            "provision.holder",
            f"{name} is in the federation already.",
            f"`--renew {name}` gives it a new key, or choose another name.",
        )
    return _taken_in(federation, name, request)


def renew(federation: Federation, name: str, request: Enrolment | None = None) -> Federation:
    """Another year for a holder, by the keys of its request; its old key stops to count if the
    request has another. Without a request, by a key that is made here, unless the holder made its
    own. ``server`` for the door's certificate, ``bundle`` for the app that runs send.

    Raises:
        ConfideError: ``provision.holder`` for an unknown name, ``provision.request``,
            ``provision.key-used``, ``provision.ca``.
    """
    if name in ("server", "bundle"):
        if request is not None:
            raise _no_fit(f"{name} is no holder.", "Give --request with a holder's name.")
        return _renewed_own(federation, name)
    holder = _known(federation, name)
    if request is None and not holder.made_here:
        raise _no_fit(
            f"{name} made its own keys, and none is made for it here.",
            "Let it run `confide client enrol` with a new folder, and give --request FILE.",
        )
    return _taken_in(federation, name, request)


def revoke(federation: Federation, name: str) -> Federation:
    """Shut a holder out, from the moment at which the running server reads it.

    Raises:
        ConfideError: ``provision.holder``.
    """
    changed = federation.with_holder(replace(_known(federation, name), revoked=True))
    changed.save()
    return changed


def _known(federation: Federation, name: str) -> Holder:
    if name not in federation.holders:
        known = ", ".join(federation.holders) or "none"
        raise ConfideError(
            "provision.holder", f"No holder is called {name!r:.80}.", f"There are: {known}."
        )
    return federation.holders[name]


def _renewed_own(federation: Federation, name: str) -> Federation:
    if name == "server":
        _certify(federation)
        return federation
    write_app(federation.app)
    changed = replace(federation, bundle=bundle_hash(federation))
    changed.save()
    return changed


def _taken_in(federation: Federation, name: str, request: Enrolment | None) -> Federation:
    if request is None:
        changed = _with_new_key(federation, name)
    else:
        changed = _with_request(federation, name, request)
    changed.save()
    return changed


def _with_new_key(federation: Federation, name: str) -> Federation:
    """A pair that is made here; a signing key that the holder made stays."""
    kit = federation.kit(name)
    write_holder_key(kit / KEY_FILE, kit / PUBLIC_FILE)
    write_public(federation.public_key(name), (kit / PUBLIC_FILE).read_bytes())
    before = federation.holders.get(name)
    holder = Holder(
        name=name,
        key=fingerprint(federation.public_key(name)),
        expires=_in_a_year(),
        signing=before.signing if before else "",
    )
    write_kit(federation, holder)
    return federation.with_holder(holder)


def _with_request(federation: Federation, name: str, request: Enrolment) -> Federation:
    """The keys of a request. One that has the node key of before adds a signing key to it."""
    holder = _holder_of(federation, name, request)
    kit = federation.kit(name)
    line = f"{request.node}\n".encode()
    (kit / KEY_FILE).unlink(missing_ok=True)  # of the old kit; who made a request has its own
    for path in (federation.public_key(name), kit / PUBLIC_FILE):
        write_public(path, line)
    write_kit(federation, holder)
    return federation.with_holder(holder)


def _holder_of(federation: Federation, name: str, request: Enrolment) -> Holder:
    """Whom a request makes, once it is clear that its keys are nobody else's."""
    if request.name != name:
        raise _no_fit(
            f"The request is of {request.name}, not of {name}.",
            "Give the request that this holder made, under the name that it made it for.",
        )
    key, signing = sha256(request.node.encode()).hexdigest(), request.signing.hex()
    before = federation.holders.get(name)
    same = before if before and before.key == key else None
    if same and not same.may_connect(datetime.now(UTC).date()):
        raise _used(f"{name} was shut out with this key, and Flower takes no key twice.")
    for other in federation.holders.values():
        if other.name != name and (other.key == key or other.signing == signing):
            raise _used(f"{other.name} has a key of this request already.")
    return Holder(
        name=name,
        key=key,
        expires=_in_a_year(),
        made_here=same.made_here if same else False,
        signing=signing,
    )


def _used(why: str) -> ConfideError:
    return ConfideError(
        "provision.key-used",
        why,
        "Let the holder run `confide client enrol` with a new folder, and give its new request.",
    )


def _no_fit(why: str, hint: str) -> ConfideError:
    return ConfideError("provision.request", why, hint)


def _certify(federation: Federation) -> None:
    door, ca = federation.folder / "door", federation.folder / "ca"
    write_door_certificate(
        door / "server.key",
        door / "server.crt",
        ca_key=ca / "ca.key",
        ca_certificate=federation.ca,
        host=federation.host,
    )


def _make_private(folder: Path) -> None:
    """A folder for this user alone. One that is there must be this user's: its owner could put a
    link in the place of what is written into it, and reads the keys."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            mine = os.fstat(handle).st_uid == os.geteuid()
            if mine:
                os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfideError(
            "provision.write",
            f"{folder} cannot be made: {os.strerror(error.errno or 0)}.",
            "Name a folder that can be written.",
        ) from None
    if not mine:
        raise ConfideError(
            "provision.write",
            f"{folder} belongs to another user.",
            "Run this as that user, or name a folder that does not exist yet.",
        )


def _in_a_year() -> date:
    return datetime.now(UTC).date() + timedelta(days=HOLDER_DAYS)


_BUNDLES = """\
# SHA-256 of the app bundles that may run here. Anything else is refused before it is unpacked. A
# bundle holds names and settings: what trains is the confide that you installed, whose own SHA-256
# `confide client status` shows and the ledger books with every charge.
"""

_README = """# Joining {host} as {name}

For the administrator of the data holder. You need a machine with Python 3.11 that has the text, and
ten minutes. Nothing listens on your side: your machine calls {fleet}, and that is
all the network that it needs.

1. Install confide. What runs here is what you install, never what the coordinator sends.
2. {key}
3. Compare by telephone, with the coordinator's own copy:
   `sha256sum ca.crt node.pub kit.toml`
4. Have your policy written, with what your text is (`[data]` at its end):
   `confide client init OWN --data TEXT.jsonl`. Edit `OWN/policy.toml`: it has the last word on
   every task, and what is looser is refused. The comments say what each limit is;
   `confide client check-policy` reads it back.
5. See what is in your text; the counts stay on this machine:
   `confide client check-data TEXT.jsonl --policy OWN/policy.toml`
6. Join. It says in plain words what will leave the machine, and asks:
   `confide client join . --data TEXT.jsonl --policy OWN/policy.toml`
   The first time it asks for a new ledger, which knows what is spent; it lies beside the text.

Runs with a secure sum (privacy.trust = 'distributed') need two things more. Your signing key, made
by `confide client enrol`, and the roster: `confide client roster roster.toml` shows all members and
twelve words. Compare the words with the other administrators by telephone, not with the coordinator
alone, and write the line that it shows into `OWN/policy.toml`. A new roster: the same again.

Is this a renewed kit? Copy its files over those of the old one, and compare as in step 3: your
policy, text and ledger stay as they are, and who is joined is connected again within a minute.

The kit is good until {expires}. Whether you are connected, what has been spent of your budget and
what is left: `confide client status .`; to say no to a run: `confide client runs .` and `deny`.
What your coordinator can and cannot see: docs/deploy.md of confide.
"""


_OWN_KEY = """\
Copy these files into the folder where `confide client enrol` made `node.key`. That is the
   secret of {name}: whoever has it can speak in your name (never read your text). The coordinator
   never had it. If it got lost, let the coordinator revoke you, and enrol again."""
_KEY_MADE_THERE = """\
Put this folder where only you can read it. `node.key` is the secret of {name}: whoever has
   it can speak in your name (never read your text). THE COORDINATOR MADE IT, for a trial on one
   machine: for real text run `confide client enrol` in a new folder, and let yours be renewed."""


def write_kit(federation: Federation, holder: Holder) -> None:
    """Write everything but keys and roster. A policy that an older confide put there is taken
    away."""
    kit = federation.kit(holder.name)
    host = f"[{federation.host}]" if ":" in federation.host else federation.host
    fleet = f"{host}:{federation.port}"
    whose = {
        "schema": "confide-kit/1",
        "name": holder.name,
        "coordinator": federation.host,
        "fleet": fleet,
    }
    until = {"bundles": [federation.bundle], "expires": holder.expires.isoformat()}
    head = f"# The kit of {holder.name}; `confide client join` reads it.\n"
    text = head + tomli_w.dumps(whose) + _BUNDLES + tomli_w.dumps(until)
    readme = _README.format(
        host=federation.host,
        name=holder.name,
        fleet=fleet,
        expires=holder.expires,
        key=(_KEY_MADE_THERE if holder.made_here else _OWN_KEY).format(name=holder.name),
    )
    write_public(kit / "kit.toml", text.encode())
    write_public(kit / "ca.crt", federation.ca.read_bytes())
    (kit / POLICY_FILE).unlink(missing_ok=True)
    write_public(kit / "README.md", readme.encode())
