"""Three holders that made their own keys, over TLS: masked rounds, and where no key ever is."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file

from confide.common.machine.paths import keys_beside
from confide.common.settings import Settings
from confide.server.run import run as run_here
from confide.simulations.inprocess import federation as in_process
from tests.deployment.fleet import HOLDERS, Fleet, Member, a_fleet, rounds_of, settings
from tests.deployment.running import needs_nginx
from tests.no_noise import no_noise

pytestmark = [needs_nginx, pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = 2
SHARED = {"privacy__trust": "distributed", "privacy__colluding": 1, "round__min_holders": 3}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with a_fleet(enrolled=True) as made:
        yield made


def masked(fleet: Fleet) -> Path:
    """Two rounds of a secure sum of three, of whom one may collude: two openers."""
    return fleet.run("masked", **SHARED)


def test_both_trips_of_every_round_go_through_door_gateway_and_resident(fleet: Fleet) -> None:
    folder = masked(fleet)
    rows = rounds_of(folder)
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    for row in rows:
        assert not row["abandoned"]
        assert [one["holder"] for one in row["accepted"]] == list(HOLDERS)
        assert row["left_out"] == []
        assert len(row["openers"]) == 2
    opened = dict.fromkeys(HOLDERS, 0)
    for row in rows:
        for name in row["openers"]:
            opened[name] += 1
    for name, holder in fleet.holders.items():
        outcomes = [row["outcome"] for row in holder.journal("task")]
        assert outcomes.count("update") == ROUNDS
        assert outcomes.count("opening") == opened[name]
    assert (folder / "report.json").is_file()
    plain = rounds_of(fleet.run("plain", privacy__trust="local"))
    for trips, measured in (("both trips", rows), ("one trip", plain)):
        print(f"seconds of a round with {trips}:", [row["seconds"] for row in measured])


def test_no_marker_of_the_text_left_a_holder_behind_masks_either(fleet: Fleet) -> None:
    run = masked(fleet).name.encode()
    assert all(run in holder.wire.sent for holder in fleet.holders.values())
    fleet.check_no_marker()


def test_what_was_opened_is_the_plain_sum_bit_for_bit() -> None:
    """In the ring, over real processes, with the noise off; and the adapter is that of the
    simulation with masks."""
    with a_fleet(enrolled=True, watched=True) as fleet:
        assert fleet.words is not None
        folder = masked(fleet)
        opened = [words_of(fleet.words, "opened", number) for number in range(ROUNDS)]
        hidden = [
            [words_of(holder.own, "hidden", number) for holder in fleet.holders.values()]
            for number in range(ROUNDS)
        ]
        found = load_file(folder / "adapter" / "adapter_model.safetensors")
        wanted = load_file(simulated(fleet) / "adapter" / "adapter_model.safetensors")
    for total, parts in zip(opened, hidden, strict=True):
        plain = np.sum(parts, axis=0, dtype=np.uint32)
        assert np.array_equal(total, plain)
        assert all(part.any() for part in parts)
    for name, values in wanted.items():
        assert found[name].equal(values), name
    assert any(values.abs().sum() > 0 for name, values in found.items() if "lora_B" in name)


def words_of(folder: Path, kind: str, number: int) -> NDArray[np.uint32]:
    return np.frombuffer((folder / f"{kind}-{number}").read_bytes(), dtype=np.uint32)


def simulated(fleet: Fleet) -> Path:
    """The run folder of the same run in this process, without noise, over the same text."""
    place = fleet.place / "simulated"
    place.mkdir()
    files = []
    for name, holder in fleet.holders.items():
        files.append(place / f"{name}.jsonl")
        files[-1].write_bytes(holder.data.read_bytes())
    config = settings(fleet.model, fleet.public, **SHARED)
    with pytest.MonkeyPatch.context() as patch:
        no_noise(patch)
        done = run_here(
            {**Settings().to_flat(), **config, "run.out": str(place)}, in_process(files, place)
        )
    return done.path


def secrets_of(holder: Member) -> list[bytes]:
    """The private halves of a holder's keys, in the forms in which a file or message has them."""
    signing = (keys_beside(holder.ledger) / "identity").read_bytes()
    assert len(signing) == 32
    pem = (holder.kit / "node.key").read_bytes().splitlines()[1:-1]
    assert len(pem) > 3
    return [
        signing,
        signing.hex().encode(),
        base64.b64encode(signing).rstrip(b"="),
        *(line for line in pem if len(line) > 40),
    ]


def test_no_private_half_of_a_holders_key_is_at_the_coordinator_or_passes_the_door(
    fleet: Fleet,
) -> None:
    """With the kits of before whoever had the coordinator's folder was every holder."""
    masked(fleet)
    secrets = [secret for holder in fleet.holders.values() for secret in secrets_of(holder)]
    public = {name: fleet.fed.holders[name].signing.encode() for name in HOLDERS}
    seen, found = 0, set[str]()
    for folder in (fleet.fed.folder, fleet.place / "runs"):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                seen += 1
                data = path.read_bytes()
                found |= {name for name, half in public.items() if half in data}
                assert [secret for secret in secrets if secret in data] == [], path
    assert seen > 40
    assert found == set(HOLDERS), "the public halves are found by the same search"
    for name, holder in fleet.holders.items():
        sent = bytes(holder.wire.sent)
        assert name.encode() in sent, "what a holder says can be read here"
        assert [secret for secret in secrets if secret in sent] == []
