"""A holder's kit: what its administrator gets, in one folder to be handed over and then deleted.

``common/kit.py`` reads it. Of secrets it holds the holder's private key and nothing else. It has no
policy: that is the holder's own, which ``confide client init`` writes for its text, and a renewed
kit that is unpacked over the old one leaves it as it was.
"""

from __future__ import annotations

import tomli_w

from ...common.kit import POLICY_FILE
from .federation import Federation, Holder
from .keys import write_holder_key, write_public

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
2. Put this folder where only you can read it. `node.key` is the secret of {name}: whoever has it
   can speak in your name (never read your text). If it got lost, let the coordinator revoke it.
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

Is this a renewed kit? Copy its files over those of the old one, and compare as in step 3: your
policy, text and ledger stay as they are, and who is joined is connected again within a minute.

The kit is good until {expires}. Whether you are connected, what has been spent of your budget and
what is left: `confide client status .`; to say no to a run: `confide client runs .` and `deny`.
What your coordinator can and cannot see: docs/deploy.md of confide.
"""


def write_kit(federation: Federation, holder: Holder) -> None:
    """Write everything but the key pair, which ``write_pair`` makes. A policy that an older confide
    put there is taken away."""
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
        host=federation.host, name=holder.name, fleet=fleet, expires=holder.expires
    )
    write_public(kit / "kit.toml", text.encode())
    write_public(kit / "ca.crt", federation.ca.read_bytes())
    (kit / POLICY_FILE).unlink(missing_ok=True)
    write_public(kit / "README.md", readme.encode())


def write_pair(federation: Federation, holder: str) -> None:
    """Make the holder's key pair; the coordinator keeps the public half alone."""
    kit = federation.kit(holder)
    write_holder_key(kit / "node.key", kit / "node.pub")
    write_public(federation.public_key(holder), (kit / "node.pub").read_bytes())
