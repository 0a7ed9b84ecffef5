"""The synthetic run folder of the report's tests, and settings to try rules on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from confide.common.settings import Settings, from_flat
from confide.server.doctor import Facts, Finding, noise, privacy
from tests.server.report.conftest import make_run, pattern, run_folder  # noqa: F401 - fixtures

Examine = Callable[..., dict[str, Finding]]

SIZES = (215, 220, 228, 232, 234, 234, 238, 242, 245, 255)  # the demo's
SOUND = {
    "model.name": "a-model",
    "task.labels": "no,yes",
    "train.batch": 320,
    "round.mode": "gradient",
}


def settings(**changes: Any) -> Settings:
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return from_flat(SOUND | named)


@pytest.fixture
def examine() -> Examine:
    """Findings by name; ``facts`` differ from those of the demo, other keywords are settings."""

    def found(facts: dict[str, Any] | None = None, **changes: Any) -> dict[str, Finding]:
        known = {"sizes": SIZES, "holders": len(SIZES), "trained": 3842} | (facts or {})
        chosen = settings(**changes)
        rules = (privacy.rules, noise.rules)
        return {f.name: f for rule in rules for f in rule(chosen, Facts(**known))}

    return found
