"""What a status says of holders, runs and the door, and the same for Prometheus."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.server.deploy import federation as federation_module
from confide.server.deploy import flower, status
from confide.server.deploy.cli import commands
from confide.server.deploy.federation import Federation, Holder
from confide.server.deploy.keys import write_ca, write_door_certificate
from confide.server.deploy.members import Member
from confide.server.deploy.receipts import memory_of
from confide.server.deploy.status import collect, exposition, write_metrics

TODAY = datetime.now(UTC).date()
SAMPLE = re.compile(r'[a-z_]+(\{holder="[a-z0-9._-]+"\})? -?[0-9]+')


@pytest.fixture
def fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Five holders, of which Flower knows four nodes; the door is taken to be well."""
    made = Federation(
        folder=tmp_path / "fed", host="localhost", port=1, superlink_port=2, bundle="0" * 64
    )
    for number, name in enumerate(("here", "gone", "new", "out", "old")):
        holder = Holder(name=name, key=f"{number}" * 64, expires=TODAY + timedelta(days=number))
        made = made.with_holder(holder)
    made = made.with_holder(replace(made.holders["out"], revoked=True))
    made = made.with_holder(replace(made.holders["old"], expires=TODAY - timedelta(days=1)))
    ca, door = made.folder / "ca", made.folder / "door"
    write_ca(ca / "ca.key", made.ca, made.name)
    write_door_certificate(
        door / "server.key",
        door / "server.crt",
        ca_key=ca / "ca.key",
        ca_certificate=made.ca,
        host="localhost",
    )
    known = [Member(name=n, key=f"{i}" * 64, node=i) for i, n in enumerate(("here", "gone", "new"))]
    states = ("online", "offline", "registered")
    monkeypatch.setattr(status, "members", lambda _: known)
    monkeypatch.setattr(
        flower, "nodes", lambda _: [flower.Node(id=i, status=s) for i, s in enumerate(states)]
    )
    ran = ("running", "finished:completed", "finished:failed", "finished:stopped")
    monkeypatch.setattr(
        flower,
        "runs",
        lambda _: [flower.FlowerRun(id=i, status=s, bundle="") for i, s in enumerate(ran)],
    )
    monkeypatch.setattr(status, "check_door", lambda _: None)
    return made


def test_every_state_of_a_holder_is_told(fed: Federation) -> None:
    found = collect(fed)
    assert {holder.name: holder.state for holder in found.holders} == {
        "here": "connected",
        "gone": "away",
        "new": "never-seen",
        "out": "revoked",
        "old": "expired",
    }
    assert (found.connected, found.trouble) == (1, ())
    assert found.to_json()["healthy"] is True


def test_who_went_back_is_told_with_the_run_that_found_it(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_of(fed).keep("20260101-spring", {}, {"gone": "gate.ledger"})
    found = {holder.name: holder.ledger for holder in collect(fed).holders}
    assert found == {
        "here": "", "gone": "gate.ledger in 20260101-spring", "new": "", "out": "", "old": "",
    }  # fmt: skip
    monkeypatch.setattr(federation_module, "find_federation", lambda _: fed)
    app = typer.Typer()
    app.add_typer(commands(), name="server")
    said = CliRunner().invoke(app, ["server", "status", "fed"]).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("gone ")]
    assert line.endswith("! gate.ledger in 20260101-spring")


def test_a_superlink_that_does_not_answer_is_trouble_and_the_rest_is_still_told(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_: Federation) -> list[flower.Node]:
        raise ConfideError("server.down", "")

    monkeypatch.setattr(flower, "nodes", down)
    found = collect(fed)
    assert found.trouble == ("server.down",)
    assert len(found.holders) == 5
    assert found.to_json()["healthy"] is False


def test_metrics_are_in_the_exposition_format_and_say_the_same(fed: Federation) -> None:
    text = exposition(collect(fed), moment=1700000000.4)
    lines = text.splitlines()
    assert text.endswith("\n")
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples)
    for name in {re.split(r"[ {]", line)[0] for line in samples}:
        assert f"# TYPE {name} gauge" in lines
        assert sum(line.startswith(f"# HELP {name} ") for line in lines) == 1
    for sample in (
        "confide_up 1",
        "confide_checked_seconds 1700000000",
        'confide_holder_connected{holder="here"} 1',
        'confide_holder_connected{holder="gone"} 0',
        'confide_holder_days_left{holder="gone"} 1',
        'confide_holder_days_left{holder="old"} -1',
        "confide_runs_running 1",
        "confide_runs_failed 2",
    ):
        assert sample in lines


def test_the_file_is_replaced_whole(fed: Federation) -> None:
    path = write_metrics(fed, collect(fed))
    assert path == fed.folder / "metrics.prom"
    assert path.read_text(encoding="utf-8").startswith("# HELP confide_up ")
    assert [p.name for p in fed.folder.iterdir() if "metrics" in p.name] == ["metrics.prom"]
