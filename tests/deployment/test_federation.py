"""A coordinator and three holders as processes of their own, with TLS and node authentication.

One federation for the whole file, and one run over it, without noise, to be compared with the
simulation. What goes wrong in a run is in ``test_federation_faults``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from confide.common.settings import Settings
from confide.server.run import run as run_here
from confide.simulations.inprocess import federation as in_process
from tests.deployment.fleet import Fleet, a_fleet, rounds_of, settings
from tests.deployment.running import needs_nginx

pytestmark = [needs_nginx, pytest.mark.timeout(600)]

MOST_OVERHEAD = 15.0  # seconds of a round that are not training, for three holders


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with a_fleet() as made:
        yield made


def bare(fleet: Fleet) -> Path:
    return fleet.run("bare", privacy__trust="off")


def test_without_noise_it_is_the_adapter_of_the_simulation(fleet: Fleet) -> None:
    folder = bare(fleet)
    files = []
    for name, holder in fleet.holders.items():
        files.append(fleet.place / "simulated" / f"{name}.jsonl")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_bytes(holder.data.read_bytes())
    config = settings(fleet.model, fleet.public, privacy__trust="off")
    config = {**Settings().to_flat(), **config, "run.out": str(fleet.place / "simulated")}
    simulated = run_here(config, in_process(files, fleet.place / "simulated"))
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    wanted = load_file(simulated.path / "adapter" / "adapter_model.safetensors")
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].equal(values), name
    assert any(values.abs().sum() > 0 for name, values in found.items() if "lora_B" in name)


def test_no_marker_of_the_data_left_a_holder(fleet: Fleet) -> None:
    """Not even from a run without noise: in no byte on the wire, log or file of the coordinator."""
    run = bare(fleet).name.encode()
    assert all(run in holder.wire.sent for holder in fleet.holders.values())
    fleet.check_no_marker()


@pytest.mark.slow  # a time, which a machine that does other work does not keep: make deployment
def test_a_round_of_warm_residents_costs_little_beside_training(fleet: Fleet) -> None:
    folder = bare(fleet)
    taken = {row["round"]: row["seconds"] for row in rounds_of(folder)}
    trained: dict[int, float] = {}
    for holder in fleet.holders.values():
        for row in holder.journal("task"):
            if row.get("run") == folder.name:
                trained[row["round"]] = max(trained.get(row["round"], 0), row["seconds"])
    over = {number: taken[number] - trained[number] for number in taken}
    print("overhead of a round, seconds:", {n: round(s, 2) for n, s in over.items()})
    assert min(over.values()) <= MOST_OVERHEAD
