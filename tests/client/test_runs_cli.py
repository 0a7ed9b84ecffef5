"""``confide client runs``, ``allow`` and ``deny``, as an administrator types them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from confide.client.commands.runs import add_commands
from confide.client.guard.policy import Policy
from confide.client.guard.runs import Decision, check_run, decisions
from confide.client.site.budget import make_ledger
from confide.client.text.taken import check_taken, take_in
from confide.common.errors import ConfideError
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.ledger import Charge, Ledger
from confide.common.privacy.plan import Plan
from confide.common.settings import from_flat
from tests import tiny
from tests.client.test_resident import Served

PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=5.0,
    sampling_rate=1.0,
    steps_per_round=1,
    max_rounds=9,
    delta=1e-5,
)


def run(*arguments: str | Path) -> Any:
    app = typer.Typer()
    add_commands(app)
    return CliRunner().invoke(app, [str(word) for word in arguments])


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    make_ledger(path)
    with Ledger.open(path) as opened:
        opened.charge(Charge(run="old", round=1, task_hash="t", plan=PLAN), limit=None)
    return path


@pytest.fixture
def served(ledger: Path, tmp_path: Path) -> Iterator[Served]:
    """A resident that says where its ledger and its policy lie."""
    policy = tmp_path / "policy.toml"
    policy.write_text("max-epsilon = 3.0\nmax-delta = 1e-5\n")
    made = Served(tmp_path)
    told = {"ledger_file": str(ledger), "policy_file": str(policy)}
    made.resident._own_report = lambda: dict(told)
    yield made
    made.stop()


def ask(name: str, ledger: Path, **settings: Any) -> None:
    flat = tiny.config(Path("m"), Path("f"), Path("o"), **settings)
    with pytest.raises(ConfideError):
        check_run(name, from_flat(flat), Policy(ask_before_run=True), ledger)


def test_who_asked_is_listed_with_what_it_asks_what_is_spent_and_what_is_left(
    served: Served, ledger: Path
) -> None:
    ask("spring", ledger, run__coordinator="uni", privacy__epsilon=2.0)
    told = json.loads(run("runs", served.path, "--json").stdout)
    old, spring = told["runs"]
    spent, taken = (epsilon_pld([PLAN.steps(rounds)], 1e-5) for rounds in (1, 9))
    assert (old["run"], old["spent"], old["asked"], old["said"]) == ("old", spent, None, None)
    assert (spring["coordinator"], spring["task"], spring["spent"]) == ("uni", "classification", 0)
    assert 1.9 < spring["asked"] <= 2.0
    assert told["left"][0].startswith(f"epsilon {3 - taken:.4g} of 3 is left at delta = 1e-05")
    shown = run("runs", served.path).stdout
    assert "spring" in shown
    assert "is left at delta" in shown.replace("\n", " ")


def test_yes_and_no_are_written_down_for_the_next_request(served: Served, ledger: Path) -> None:
    assert run("allow", served.path, "spring").exit_code == 0
    assert run("deny", served.path, "old").exit_code == 0
    assert decisions(ledger) == {"spring": Decision.ALLOWED, "old": Decision.DENIED}
    rows = json.loads(run("runs", served.path, "--json").stdout)["runs"]
    assert {row["run"]: row["said"] for row in rows} == {"old": "denied", "spring": "allowed"}


def test_a_changed_text_is_shown_and_taken_in_by_a_yes_alone(
    served: Served, ledger: Path, tmp_path: Path
) -> None:
    data = tmp_path / "text.jsonl"
    rows = [{"text": t, "label": t, "person": t} for t in ("positive", "negative")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    policy = tmp_path / "policy.toml"
    policy.write_text(tiny.DATA_TABLE)
    told = {**served.resident._own_report(), "data_file": str(data)}
    served.resident._own_report = lambda: dict(told)
    take_in(data, ledger)
    os.utime(data, (0, 0))
    with pytest.raises(ConfideError, match=r"data\.changed"):
        check_taken(data, ledger)
    app = typer.Typer()
    add_commands(app)
    asked = CliRunner().invoke(app, ["take-in", str(served.path)], input="n\n")
    assert (asked.exit_code, "1 rows that do not fit" in asked.stdout) == (1, True)
    with pytest.raises(ConfideError, match=r"data\.changed"):
        check_taken(data, ledger)
    assert run("take-in", served.path, "--yes").exit_code == 0
    check_taken(data, ledger)


def test_without_a_running_resident_the_ledger_is_named(ledger: Path, tmp_path: Path) -> None:
    error = run("runs", tmp_path / "nobody").exception
    assert isinstance(error, ConfideError)
    assert error.code == "resident.unreachable"
    assert run("deny", tmp_path / "nobody", "old", "--ledger", ledger).exit_code == 0
    assert decisions(ledger) == {"old": Decision.DENIED}


def test_who_is_not_told_where_the_ledger_lies_is_told_what_to_do(tmp_path: Path) -> None:
    """As the gateway's user, which can reach the socket."""
    served = Served(tmp_path)
    served.resident._own_report = dict
    error = run("deny", served.path, "old").exception
    served.stop()
    assert isinstance(error, ConfideError)
    assert error.code == "runs.ledger"
    assert "--ledger" in error.hint


def test_what_a_coordinator_says_of_itself_commands_no_terminal(
    served: Served, ledger: Path
) -> None:
    ask("spring", ledger, run__coordinator="\x1b[2J[bold]uni")
    said = run("runs", served.path).stdout
    assert "\x1b" not in said
    assert "[bold]uni" in said


def test_a_run_without_noise_is_said_to_ask_for_all(served: Served, ledger: Path) -> None:
    ask("bare", ledger, privacy__trust="off")
    assert json.loads(run("runs", served.path, "--json").stdout)["runs"][1]["asked"] is None
    assert "infinite" in run("runs", served.path).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for another user")
def test_what_root_decides_belongs_to_the_ledgers_user(ledger: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        own = Path(name) / "own"
        own.mkdir(mode=0o700)
        theirs = Path(shutil.copy(ledger, own / "ledger.sqlite"))
        for path in (own, theirs):
            os.chown(path, 1, 1)
        assert run("deny", own, "old", "--ledger", theirs).exit_code == 0
        (file,) = own.glob("*.decisions.json")
        assert (file.stat().st_uid, file.stat().st_gid) == (1, 1)
