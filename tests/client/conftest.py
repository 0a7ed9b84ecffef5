"""A deployed holder of a few records, and tasks as an honest coordinator sends them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard.policy import Policy
from confide.client.holder import Holder, Site
from confide.common.adapter.encoding import pack
from confide.common.adapter.schema import flatten, get_adapter
from confide.common.models.loading import load_model
from confide.common.privacy.filters import enforced, settle
from confide.common.privacy.ledger import Ledger
from confide.common.privacy.steps import Steps
from confide.common.settings import COORDINATORS_OWN, from_flat
from confide.common.wire.messages import Reply, TrainRequest, Update
from tests import tiny

RECORDS = 24


class Place:
    """One holder's machine. ``settings`` are the coordinator's, ``policy`` the holder's, who says
    of its text what lets that run fit unless the policy says something else."""

    def __init__(self, folder: Path, model: Path, policy: Policy, **settings: Any) -> None:
        self.model = model
        self.data = tiny.write_jsonl(folder / "own" / "text.jsonl", tiny.rows(RECORDS, seed=3))
        flat = tiny.config(model, Path("federation"), Path("runs"), **settings)
        if policy.data is None and not policy.allow_any_data:
            policy = dataclasses.replace(policy, data=tiny.contract(flat))
        self.site = Site(
            name="holder-00",
            data=self.data,
            ledger=folder / "own" / "ledger.sqlite",
            policy=policy,
            new_ledger=True,
        )
        self.settings = {k: v for k, v in flat.items() if k not in COORDINATORS_OWN}
        self.holder = Holder(self.site)

    def task(self, number: int = 1, run: str = "run-1", **changes: Any) -> TrainRequest:
        """The honest task of a round; ``changes`` are of the task's own fields."""
        loaded = load_model(from_flat(self.settings))
        shapes = loaded.schema.shapes
        # All of it is sent, as if nothing were as it was in the beginning.
        adapter = flatten(get_adapter(loaded.model), shapes)
        nothing = pack(loaded.schema, flatten(loaded.initial, shapes) + 1, loaded.initial).rest
        task = TrainRequest(
            run=run,
            round=number,
            settings=self.settings,
            schema=loaded.schema.digest,
            sent="1" * len(shapes),
            rest=nothing,
            adapter=adapter.numpy().tobytes(),
        )
        return dataclasses.replace(task, **changes)

    def hostile(self, **changes: Any) -> TrainRequest:
        """The honest task with other settings: ``privacy__epsilon=3``."""
        named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        return self.task(settings=self.settings | named)

    def restart(self, **policy: Any) -> Holder:
        """A new holder, as after a reboot, perhaps under another policy."""
        changed = dataclasses.replace(self.site.policy, **policy)
        self.site = dataclasses.replace(self.site, policy=changed)
        self.holder = Holder(self.site)
        return self.holder

    def states(self) -> list[str]:
        """What the ledger has booked, in order."""
        with Ledger.open(self.site.ledger, create=False) as ledger:
            return [e.payload["state"] for e in ledger.entries()]

    def charges(self) -> int:
        return self.states().count("reserved") if self.site.ledger.exists() else 0


def least_limit(whole: Steps, taken: Steps, delta: float) -> float:
    """The least limit on all runs that ``taken`` fits into, of a first run that is to release
    ``whole`` and does not fit as such."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        fits = enforced(settle(whole, delta, middle), taken, middle, delta)
        low, high = (low, middle) if fits else (middle, high)
    return high


def code(reply: Reply) -> str:
    """The refusal's code, or "update"."""
    return "update" if isinstance(reply, Update) else reply.code


@pytest.fixture
def make_place(tmp_path: Path, tiny_model: Path) -> Callable[..., Place]:
    def make(policy: Policy | None = None, **settings: Any) -> Place:
        default = Policy(max_delta=1e-2, base_models=(str(tiny_model),))
        return Place(tmp_path, tiny_model, policy or default, **settings)

    return make


@pytest.fixture
def place(make_place: Callable[..., Place]) -> Place:
    return make_place()
