"""What ``confide doctor`` was given, read: a scenario, a configuration, or a run folder.

A prepared federation, public text in the cache, tells how much each holder has; a model folder in
the cache how many values are trained. Neither is fetched or changed, and of the text only how many
records and persons there are is kept.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from ..common.combinations import MERGING
from ..common.errors import ConfideError
from ..common.paths import local_or_cached
from ..common.settings import Scalar, Settings, from_flat
from ..common.text.benchmarks import BENCHMARKS
from ..server.doctor import Facts, Finding, noise, privacy, sort
from ..server.doctor.federation import facts_of
from ..server.doctor.run import examine_run
from ..server.report import find_run
from .description import is_description
from .scenario import load_scenario, run_config

_DEMO = "nyt"  # its values are those of pyproject.toml, over which Flower lays a run config
_SCENARIO = {"source", "holders", "partition"}  # the tables that only a scenario has
_APP = "tool.flwr.app.config."  # where pyproject.toml has them


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was looked at, in words, and what was found, worst first."""

    subject: str
    facts: Facts
    findings: tuple[Finding, ...]


def diagnose(target: str) -> Diagnosis:
    """Examine a scenario's name, a .toml or .json file, a run folder, or ``latest``.

    Raises:
        ConfideError: ``doctor.target`` for what is none of these, and what reading one raises.
    """
    if target == "latest" or Path(target).is_dir():
        folder = find_run(target)
        facts, found = examine_run(folder)
        subject = f"the run {folder.resolve().name}"
        return Diagnosis(subject=subject, facts=facts, findings=tuple(found))
    subject, settings, holders = _configuration(target)
    facts = facts_of(settings)
    facts = replace(facts, holders=facts.holders or holders, trained=_trained_values(settings))
    rules = (*privacy.rules(settings, facts), *noise.rules(settings, facts))
    return Diagnosis(subject=subject, facts=facts, findings=tuple(sort(rules)))


# --- the settings ---


def _configuration(target: str) -> tuple[str, Settings, int]:
    """In words, its settings, and how many holders it names (0: none)."""
    if not target.endswith((".toml", ".json")) and "/" in target and target not in BENCHMARKS:
        _refuse(f"There is no folder {target}")
    path = Path(target)
    content = _toml(path) if path.suffix == ".toml" else {}
    if path.suffix != ".toml" or _SCENARIO & content.keys() or is_description(content):
        scenario = load_scenario(target)
        return f"the scenario {target}", from_flat(run_config(scenario)), scenario.holders
    flat = _flat(content)
    app = {k.removeprefix(_APP): value for k, value in flat.items() if k.startswith(_APP)}
    flat, demo = (app, {}) if app else (flat, run_config(load_scenario(_DEMO)))
    missing = len(demo.keys() - flat.keys())
    words = f", with the demo's values for the {missing} settings that it lacks" if missing else ""
    return f"the configuration {path}{words}", from_flat({**demo, **flat}), 0


def _toml(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        _refuse(f"{path} cannot be read: {error.strerror}")
    except ValueError:
        _refuse(f"{path} is not TOML")
    return content


def _refuse(what: str) -> NoReturn:
    raise ConfideError(
        "doctor.target",
        f"{what}.",
        "Give a scenario's name, a .toml file of settings, a task description, a run folder, or"
        " 'latest'.",
    )


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for key, value in tables.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


# --- the facts ---


def _trained_values(settings: Settings) -> int:
    """How many values are trained, from a model's config.json; 0 where that is not known, or
    where adapters sit elsewhere than at the attention's query and value.

    A factor of LoRA at a projection from and to h features has rank * h values.
    """
    folder = local_or_cached(settings.model.name, "models")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return 0
    width = config.get("hidden_size") or config.get("dim") or config.get("n_embd") or 0
    depth = config.get("num_hidden_layers") or config.get("n_layers") or config.get("n_layer") or 0
    if not width or not depth or settings.lora.targets or settings.task.pooling != "mean":
        return 0
    head = (width + 1) * len(settings.task.label_names)
    if settings.lora.method == "head":
        return int(head)
    layers = min(settings.lora.layers or depth, depth)
    factors = 2 if settings.aggregate.method in ("lora", "fedsa", *MERGING) else 1
    return int(head + 2 * layers * factors * settings.lora.rank * width)
