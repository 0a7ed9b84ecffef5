"""The text of a run of the utility table: a scenario's text, split in one of three ways, and the
public records that choose a rate or that are reported.

A keyed hash of the person (of the text, if there is no person) cuts the public text in two, so that
a learning rate chosen on one half has not seen a record, or a person, of the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...client.guard.policy_file import simulated_policy
from ...common.errors import ConfideError
from ...common.settings import Scalar
from ...server.run_folder import PUBLIC_FILE
from ..scenario import Scenario, prepare, run_config

# As the table calls them, and as ``prepare_federation`` does.
PARTITIONS: Mapping[str, str] = {"iid": "iid", "dirichlet": "dirichlet", "natural": "unit"}
OWN = "own"  # as the scenario has it
_ALPHA = 0.5
_MANIFEST = "federation.json"
HALVES = ("choose", "report")
EVERYTHING = "all"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A prepared federation: its folder, and how its text is split; ``pooled``: whether one place
    has all of it."""

    scenario: Scenario
    partition: str
    folder: Path
    pooled: bool = False

    @property
    def holders(self) -> list[Path]:
        """A file for each holder."""
        return sorted(self.folder.glob("holder-*.jsonl"))

    @property
    def smallest_rank(self) -> int:
        """The largest ``lora.rank`` that every holder's policy lets it train."""
        return min(simulated_policy(file).max_rank for file in self.holders)

    def digest(self, part: str) -> str:
        """A digest of the text, the holders' limits and the part of the public records."""
        files = [
            self.folder / PUBLIC_FILE,
            *self.holders,
            *sorted(self.folder.glob("holder-*.policy.toml")),
        ]
        parts = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
        return hashlib.sha256(json.dumps([parts, part]).encode()).hexdigest()

    def public(self, part: str, config: Mapping[str, Scalar], into: Path) -> Path:
        """A folder for a run's ``data.path``: the manifest and that part of the public records.

        Raises:
            ConfideError: ``bench.public`` if no record is left.
        """
        lines = (self.folder / PUBLIC_FILE).read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if part in (EVERYTHING, half_of(json.loads(line), config))]
        if not kept:
            raise ConfideError(
                "bench.public",
                f"{self.scenario.name} has too little public text to be cut in two.",
                "Leave out --tune-rates.",
            )
        into.mkdir()
        (into / PUBLIC_FILE).write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        (into / _MANIFEST).write_bytes((self.folder / _MANIFEST).read_bytes())
        return into


def half_of(row: Mapping[str, Any], config: Mapping[str, Scalar]) -> str:
    """The half of a public record; all records of a person, and equal texts, are in the same
    half."""
    person = row.get(str(config["data.person"] or "person"))
    key = f"half:{person or row[str(config['data.text'])]}"
    return HALVES[hashlib.sha256(key.encode()).digest()[0] & 1]


def that_fit(
    scenario: Scenario, partitions: Sequence[str], limit: int | None = None
) -> tuple[list[Place], list[str]]:
    """A place for each partition that the scenario's text allows, and the reason for each other
    one.

    Raises:
        ConfideError: ``bench.partition`` if the text allows none.
    """
    fit, unfit = list[Place](), list[str]()
    for partition in partitions:
        try:
            fit.append(place(scenario, partition, limit))
        except ConfideError as error:
            if error.code != "bench.partition":
                raise
            unfit.append(error.message)
    if not fit:
        raise ConfideError("bench.partition", " ".join(unfit), "Name another partition.")
    return fit, unfit


def place(scenario: Scenario, partition: str, limit: int | None = None) -> Place:
    """The scenario's text in this partition, at most ``limit`` training records of it.

    Raises:
        ConfideError: ``bench.partition`` if the text has no users or labels to split by.
    """
    if partition == OWN and limit is None:
        return Place(scenario=scenario, partition=partition, folder=prepare(scenario))
    if scenario.files is not None:
        raise ConfideError(
            "bench.partition",
            f"{scenario.name} describes files of its own, which are shared out in one way only.",
            "Leave out --partitions and --limit.",
        )
    size = [] if limit is None else [str(limit)]
    changed: dict[str, Scalar] = {} if limit is None else {"federation.limit": limit}
    if partition != OWN:
        changed |= {"federation.partition": PARTITIONS[partition], "federation.alpha": _ALPHA}
    named = replace(scenario.with_(changed), name="-".join([scenario.name, partition, *size]))
    made = Place(scenario=scenario, partition=partition, folder=prepare(named))
    _check(made)
    return made


def check_rates(chosen_on: Scenario, reported: Scenario, trials: int) -> None:
    """Refuse rates from another text if they would mean something else here, or if none would be
    tried.

    Raises:
        ConfideError: ``bench.rates``.
    """
    there, here = (run_config(one)["train.batch"] for one in (chosen_on, reported))
    if there != here:
        raise ConfideError(
            "bench.rates",
            f"{chosen_on.name} has train.batch = {there}, and {reported.name} {here}: at the same"
            " rate their steps are of different length.",
            f"Leave out --rates-from, or add --set train.batch={here}.",
        )
    if not trials:
        raise ConfideError(
            "bench.rates",
            f"--rates-from {chosen_on.name} tries no rate, since --tune-rates = 0.",
            "Add --tune-rates 5.",
        )


def _check(made: Place) -> None:
    persons, labels, count = set[str](), set[str](), 0
    for row in _rows(made):
        count += 1
        persons.add(row.get("person", str(count)))
        labels.add(row.get("label", ""))
    name = made.scenario.name
    if made.partition == "natural" and len(persons) == count:
        raise ConfideError(
            "bench.partition", f"{name} has no natural users: each record is by itself."
        )
    if made.partition == "dirichlet" and not labels - {""}:
        raise ConfideError("bench.partition", f"{name} has no labels to be shared out unevenly.")


def _rows(made: Place) -> Iterator[Mapping[str, str]]:
    for path in made.holders:
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())
