"""receipts.json: what a federation remembers of its holders' ledgers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.privacy.accountant import GaussianSteps
from confide.common.privacy.ledger import Receipt
from confide.server.deploy import flower
from confide.server.deploy.federation import Federation
from confide.server.deploy.receipts import FILE, Known, memory_here, memory_of, read_known


def receipt(entries: int, ledger: str = "ab" * 16) -> Receipt:
    return Receipt(
        ledger_id=ledger,
        head=f"{entries:064x}",
        entries=entries,
        delta=1e-5,
        epsilon=float("inf") if entries == 99 else 0.5,
        proven=float("inf") if entries == 99 else 0.75,
        unmasked=float("inf") if entries == 99 else 0.75,
        runs=2,
        limit=None if entries == 3 else 10.0,
        steps_run=(GaussianSteps(noise_multiplier=2.0, sampling_rate=1.0, steps=entries),),
    )


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    made = Federation(
        folder=tmp_path / "fed", host="localhost", port=1, superlink_port=2, bundle="0" * 64
    )
    made.folder.mkdir(mode=0o700)
    made.save()
    return made


def test_what_is_kept_is_there_for_the_next_run(fed: Federation) -> None:
    assert memory_of(fed).load() == {}
    memory_of(fed).keep("run-1", {"north": receipt(3), "south": receipt(99)}, {})
    memory_of(fed).keep("run-1", {"north": receipt(5)}, {})
    assert memory_of(fed).load() == {"north": receipt(5), "south": receipt(99)}


def test_of_one_ledger_the_longer_receipt_counts_and_of_another_the_newer(fed: Federation) -> None:
    """Two runs at a time may tell of one ledger in either order."""
    memory = memory_of(fed)
    memory.keep("run-1", {"north": receipt(5)}, {})
    memory.keep("run-2", {"north": receipt(3)}, {})
    assert memory.load() == {"north": receipt(5)}
    memory.keep("run-2", {"north": receipt(3, "cd" * 16)}, {})
    assert memory.load() == {"north": receipt(3, "cd" * 16)}


def test_a_fault_stays_with_the_run_that_found_it(fed: Federation) -> None:
    memory = memory_of(fed)
    memory.keep("run-1", {"north": receipt(5)}, {"north": "gate.new-ledger", "west": "gate.ledger"})
    memory.keep("run-2", {"north": receipt(7)}, {})
    assert read_known(fed) == {
        "north": Known(receipt=receipt(7), fault="gate.new-ledger", run="run-1"),
        "west": Known(receipt=None, fault="gate.ledger", run="run-1"),
    }
    assert memory.load() == {"north": receipt(7)}


def test_runs_at_a_time_lose_nothing_of_each_other(fed: Federation) -> None:
    def keep(name: str) -> None:
        for entries in range(1, 20):
            memory_of(fed).keep("run", {name: receipt(entries)}, {})

    threads = [threading.Thread(target=keep, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory_of(fed).load() == {name: receipt(19) for name in ("a", "b", "c")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 5000,
        '{"north": 7}',
        '{"north": {"receipt": {}, "fault": "", "run": ""}}',
        '{"north": {"receipt": null, "fault": 7, "run": ""}}',
        '{"north": {"receipt": null}}',
    ],
)
def test_a_damaged_memory_is_told_and_never_taken_for_none(fed: Federation, text: str) -> None:
    (fed.folder / FILE).write_text(text)
    with pytest.raises(ConfideError) as caught:
        memory_of(fed).load()
    assert caught.value.code == "federation.receipts"
    with pytest.raises(ConfideError):
        memory_of(fed).keep("run", {"north": receipt(5)}, {})
    assert (fed.folder / FILE).read_text() == text


def test_a_server_app_finds_the_memory_of_the_federation_that_started_it(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(flower.FEDERATION, raising=False)
    assert memory_here() is None
    monkeypatch.setenv(flower.FEDERATION, str(fed.folder))
    memory = memory_here()
    assert memory is not None
    memory.keep("run", {"north": receipt(5)}, {})
    assert json.loads((fed.folder / FILE).read_text())["north"]["receipt"] == receipt(5).to_json()
    assert os.environ[flower.FEDERATION] == str(fed.folder)
