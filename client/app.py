"""The ClientApp: parse the message, call the holder, reply. Nothing else happens here.

Where the node configuration names a ``socket``, the holder is a process of its own behind it, and
this one hands messages on (``relay``): it opens no file and imports no torch, so that a message
costs no more than Flower's own start. Otherwise it is called here: a deployed holder names its own
data, ledger and policy in its node configuration. A simulated one has only a partition number;
then, and only then, the run config names the folder of the prepared federation, and the ledger lies
in the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ..common.errors import ConfideError
from ..common.machine.installed import code_hash
from ..common.machine.paths import local_or_cached, runs_folder
from ..common.wire.messages import (
    OpenRequest,
    Refusal,
    Reply,
    Request,
    TrainRequest,
    reply_from_bytes,
    reply_to_records,
    request_from_records,
    request_to_bytes,
)
from .guard.scrub import code_of, quiet
from .site import unix_socket

if TYPE_CHECKING:
    from .holder import Holder, Site

app = ClientApp()

_LEAST_SECONDS, _MOST_SECONDS = 30.0, 24 * 3600.0  # to wait for a resident
_OPENING_SECONDS = 600.0

# What a holder sets itself; any of them marks a node as deployed, and none is ever guessed then.
_OWN = frozenset({"data", "policy", "ledger", "name"})

_HOLDERS: dict[Site, Holder] = {}


@app.train()
def train(message: Message, context: Context) -> Message:
    """One request, one update or refusal."""
    return Message(content=_answered(message, context, TrainRequest), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """The second trip of a secure sum: keystreams, or a refusal."""
    return Message(content=_answered(message, context, OpenRequest), reply_to=message)


def answer(message: Message, context: Context, kind: type[Request] = TrainRequest) -> Reply:
    """The holder's reply; whatever goes wrong leaves as a code."""
    try:
        with quiet():
            request = request_from_records(message.content)
            if not isinstance(request, kind):
                raise ConfideError("wire.malformed", "The message asks for something else.")
            if "socket" in context.node_config:
                return relay(request, Path(str(context.node_config["socket"])))
            from .holder import Holder

            site = site_of(request, context.node_config, context.run_config)
            holder = _HOLDERS.setdefault(site, Holder(site))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - its text must not leave, whatever it is
        return Refusal(holder="", task_hash="", code=code_of(error))
    return holder.handle(request)


def _answered(message: Message, context: Context, kind: type[Request]) -> RecordDict:
    try:
        reply = answer(message, context, kind)
        with quiet():
            return reply_to_records(reply)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - as above
        return reply_to_records(Refusal(holder="", task_hash="", code=code_of(error)))


def site_of(request: Request, node: Mapping[str, Any], run: Mapping[str, Any]) -> Site:
    """The site of this node, from its own configuration or, in a simulation, its number.

    Raises:
        ConfideError: ``holder.not-configured`` or ``simulation.federation``.
    """
    from .guard.policy import Policy
    from .guard.policy_file import load_policy, simulated_policy
    from .holder import Site

    if node.keys() & _OWN:
        if "data" not in node:
            raise _not_configured()
        policy = load_policy(Path(str(node["policy"]))) if "policy" in node else Policy()
        data = Path(str(node["data"]))
        ledger = Path(str(node.get("ledger", f"{data}.ledger.sqlite")))
        return Site(
            name=str(node.get("name", "holder")),
            data=data,
            ledger=ledger,
            policy=policy,
            bundle=code_hash(),
        )
    if "partition-id" not in node:
        raise _not_configured()
    name = f"holder-{int(node['partition-id']):02d}"
    federation = local_or_cached(str(run.get("data.path", "")), "federations")
    folder = runs_folder(run) / request.run
    if federation is None or not folder.is_dir():
        raise ConfideError(
            "simulation.federation",
            f"The federation {run.get('data.path')!r} or the run's folder is not on this machine.",
            "Run `confide assets fetch`.",
        )
    data = federation / f"{name}.jsonl"
    return Site(
        name=name,
        data=data,
        ledger=folder / "holders" / name / "ledger.sqlite",
        policy=simulated_policy(data),
        bundle=code_hash(),
        new_ledger=True,
    )


def _not_configured() -> ConfideError:
    return ConfideError(
        "holder.not-configured",
        "This holder's node configuration names no data.",
        'Start the SuperNode with --node-config \'data="..." policy="..."\', once its ledger is'
        " made by `confide ledger new DATA.ledger.sqlite`.",
    )


def relay(request: Request, path: Path) -> Reply:
    """The resident's reply, waited for as long as the coordinator waits for this holder.

    Raises:
        ConfideError: ``resident.unreachable``, ``resident.silent``, ``socket.*`` or
            ``wire.malformed``.
    """
    reply = unix_socket.ask(
        path, unix_socket.TASK, request_to_bytes(request), unix_socket.REPLY, _patience(request)
    )
    return reply_from_bytes(reply)


def _patience(request: Request) -> float:
    """Seconds; ``round.timeout`` as the coordinator says it, within reason. An opener trains
    nothing, but may have to wait for the task in hand."""
    told = request.settings if isinstance(request, TrainRequest) else {}
    wanted = told.get("round.timeout", _OPENING_SECONDS)
    if not isinstance(wanted, int | float):
        return _LEAST_SECONDS
    return float(min(max(_LEAST_SECONDS, wanted), _MOST_SECONDS))  # not a number is the least
