"""``confide ledger``: what an administrator and an auditor see of a ledger file."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import confide
from confide.client.cli import add_commands
from confide.common.errors import ConfideError
from confide.common.machine.installed import code_hash
from confide.common.privacy.accountant import epsilon_pld
from confide.common.privacy.ledger import Charge, Ledger, canonical
from confide.common.privacy.plan import Plan, Trust, Unit

ROOT = Path(confide.__file__).resolve().parent.parent
DELTA = 1e-5
PLAN = Plan(
    clip_norm=1.0,
    noise_multiplier=10.0,
    sampling_rate=1.0,
    steps_per_round=2,
    max_rounds=9,
    delta=DELTA,
)


def run(*arguments: str) -> Any:
    app = typer.Typer()
    add_commands(app)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, ["ledger", *arguments])


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        for k, name in enumerate(["spring", "spring", "autumn"]):
            ledger.charge(Charge(run=name, round=k, task_hash=f"task-{k}", plan=PLAN), limit=None)
        ledger.release("task-0", b"update", "keyed-hash")
    return str(path)


def flip_a_bit(file: str) -> None:
    data = bytearray(Path(file).read_bytes())
    data[data.index(b"autumn")] ^= 1
    Path(file).write_bytes(data)


def test_show_adds_up_all_runs_and_each(file: str) -> None:
    summary = json.loads(run("show", file, "--json").stdout)
    assert summary["epsilon"] == epsilon_pld([PLAN.steps(3)], DELTA)
    assert [(r["run"], r["charged"], r["released"]) for r in summary["runs"]] == [
        ("spring", 2, 1),
        ("autumn", 1, 0),
    ]
    assert summary["runs"][0]["epsilon"] == epsilon_pld([PLAN.steps(2)], DELTA)
    assert summary["text"] == "keyed-hash"
    assert (summary["unit"], summary["person"]) == ("record", "")


def test_show_names_the_code_that_trained_each_run(file: str) -> None:
    with Ledger.open(file) as ledger:
        for k, code in enumerate(["c" * 64, code_hash()]):
            charge = Charge(run="late", round=k, task_hash=code, plan=PLAN, bundle_hash=code)
            ledger.charge(charge, limit=None)
    runs = json.loads(run("show", file, "--json").stdout)["runs"]
    assert {r["run"]: r["code"] for r in runs} == {
        "spring": [""],
        "autumn": [""],
        "late": sorted(["c" * 64, code_hash()]),
    }
    said = run("show", file).stdout
    assert f"SHA-256 {'c' * 64}: late" in said
    assert f"SHA-256 {code_hash()} (the one installed here): late" in said
    assert "SHA-256 unknown: spring, autumn" in said
    rows = [json.loads(line) for line in run("export", file).stdout.splitlines()]
    assert [r["payload"]["bundle"] for r in rows if "bundle" in r["payload"]][-1] == code_hash()


def test_show_says_what_is_left_under_the_policy_beside_the_ledger_or_named(
    file: str, tmp_path: Path
) -> None:
    with Ledger.open(file) as ledger:
        spent, taken = ledger.epsilon(DELTA), ledger.proven(DELTA, "autumn")
    assert "Name your policy with --policy to see what is left." in run("show", file).stdout
    assert json.loads(run("show", file, "--json").stdout)["left"] == []
    other = tmp_path / "other.toml"
    other.write_text("max-epsilon = 4.0\nmax-epsilon-per-run = 1.0\nmax-delta = 1e-5\n")
    said = run("show", file, "--policy", str(other)).stdout
    assert f"epsilon {4 - taken:.4g} of 4 is left at delta = 1e-05 ({spent:.4g} is spent" in said
    assert f"{taken:.4g} with all of autumn); another run may take about 1 of it" in said
    (tmp_path / "policy.toml").write_text("max-epsilon = 5.0\nmax-delta = 1e-5\n")
    (left,) = json.loads(run("show", file, "--json").stdout)["left"]
    figures = {"spent": spent, "taken": taken, "limit": 5.0, "left": 5.0 - taken}
    assert left == {"delta": DELTA, **figures}


def test_a_runs_id_commands_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        for k, name in enumerate(["\x1b[2Jgone", "[bold red]loud", "\u202eturned"]):
            ledger.charge(Charge(run=name, round=k, task_hash=f"{k}", plan=PLAN), limit=None)
    said = run("show", str(path)).stdout
    assert "\x1b[2J" not in said
    assert "\u202e" not in said
    assert "[bold red]loud" in said


def test_a_new_ledger_is_made_by_a_word_and_never_over_one(file: str, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.sqlite"
    assert run("new", str(fresh)).exit_code == 1  # asked, and nobody answered
    assert not fresh.exists()
    done = run("new", str(fresh), "--yes")
    assert done.exit_code == 0
    assert "what was spent before would be spent again" in done.stdout
    assert "Nothing was spent." in run("show", str(fresh)).stdout
    before = Path(file).read_bytes()
    error = run("new", file, "--yes").exception
    assert isinstance(error, ConfideError)
    assert error.code == "ledger.exists"
    assert Path(file).read_bytes() == before


def test_show_takes_another_delta(file: str) -> None:
    summary = json.loads(run("show", file, "--delta", "1e-6", "--json").stdout)
    assert summary["epsilon"] == epsilon_pld([PLAN.steps(3)], 1e-6)


def test_people_get_a_table_with_the_sum_below(file: str) -> None:
    output = run("show", file).stdout
    assert "spring" in output
    assert f"epsilon = {epsilon_pld([PLAN.steps(3)], DELTA):.4f} per record" in output


def test_a_ledger_of_persons_says_so_and_names_the_column(tmp_path: Path) -> None:
    path = tmp_path / "persons.sqlite"
    persons = replace(PLAN, unit=Unit.PERSON)
    with Ledger.open(path) as ledger:
        charge = Charge(run="r", round=1, task_hash="t", plan=persons, person="[b]author")
        ledger.charge(charge, limit=None)
    assert "per person (column '[b]author')" in run("show", str(path)).stdout
    summary = json.loads(run("show", str(path), "--json").stdout)
    assert (summary["unit"], summary["person"]) == ("person", "[b]author")
    assert summary["text"] is None  # none was read yet


def test_steps_without_noise_are_shown_as_not_private(file: str) -> None:
    bare = Plan.from_json({**PLAN.to_json(), "trust": str(Trust.OFF), "noise_multiplier": 0.0})
    with Ledger.open(file) as ledger:
        ledger.charge(Charge(run="bare", round=0, task_hash="bare", plan=bare), limit=None)
    assert "not private" in run("show", file).stdout
    assert json.loads(run("show", file, "--json").stdout)["epsilon"] is None


def test_an_empty_ledger_has_spent_nothing(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "new.sqlite").close()
    assert "Nothing was spent." in run("show", str(tmp_path / "new.sqlite")).stdout


def test_verify_says_that_a_sound_ledger_is_sound(file: str) -> None:
    done = run("verify", file)
    assert done.exit_code == 0
    assert "sound: 5 entries" in done.stdout
    assert json.loads(run("verify", file, "--json").stdout)["ok"] is True


def test_verify_fails_on_a_flipped_bit(file: str) -> None:
    flip_a_bit(file)
    error = run("verify", file).exception
    assert isinstance(error, ConfideError)
    assert error.code == "ledger.corrupt"
    done = run("verify", file, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["ok"] is False


def test_verify_fails_when_a_receipts_head_is_not_in_it(file: str) -> None:
    with Ledger.open(file) as ledger:
        head = ledger.head
    assert run("verify", file, "--head", head).exit_code == 0
    assert run("verify", file, "--head", "0" * 64).exit_code == 1


def test_an_auditor_can_recompute_the_chain_from_an_export(file: str) -> None:
    previous = "0" * 64
    rows = [json.loads(line) for line in run("export", file).stdout.splitlines()]
    for number, row in enumerate(rows):
        assert row["number"] == row["payload"]["number"] == number
        assert row["payload"]["previous"] == previous
        previous = sha256(canonical(row["payload"]).encode()).hexdigest()
        assert row["hash"] == previous
    assert rows == json.loads(run("export", file, "--json").stdout)
    assert len(rows) == 5


def test_export_writes_a_new_file_and_overwrites_none(file: str, tmp_path: Path) -> None:
    out = tmp_path / "ledger.jsonl"
    assert run("export", file, "--out", str(out)).exit_code == 0
    assert len(out.read_text().splitlines()) == 5
    error = run("export", file, "--out", str(out)).exception
    assert isinstance(error, ConfideError)
    assert error.code == "ledger.export"


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_reading_makes_no_ledger(command: str, tmp_path: Path) -> None:
    error = run(command, str(tmp_path / "none.sqlite")).exception
    assert isinstance(error, ConfideError)
    assert error.code == "ledger.missing"
    assert list(tmp_path.iterdir()) == []


def test_ledger_commands_do_not_import_torch(file: str) -> None:
    code = (
        "import sys, typer\n"
        "from confide.client.cli import add_commands\n"
        "app = typer.Typer(); add_commands(app); app.callback()(lambda: None)\n"
        f"app(['ledger', 'show', {file!r}], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'opacus', 'transformers', 'flwr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be used to write elsewhere")
@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_root_that_reads_a_ledger_of_anothers_writes_to_nothing_of_its_own(
    file: str, command: str
) -> None:
    """SQLite plays a journal back that was left beside the file, and empties it, for a reader too.
    Not through a link by name; but some systems let anybody make a hard link to any file."""
    with tempfile.TemporaryDirectory() as name:
        victim, own = Path(name) / "victim", Path(name) / "own"
        victim.write_text("root's alone")
        own.mkdir()
        ledger = Path(shutil.copy(file, own / "ledger.sqlite"))
        journal = own / "ledger.sqlite-journal"
        journal.hardlink_to(victim)
        for path in (own, ledger):
            os.chown(path, 1, 1)
        Path(name).chmod(0o755)
        victim.chmod(0o600)
        run(command, str(ledger))
        assert victim.read_text() == "root's alone"
        assert journal.exists(), "root removes nothing there either"
        journal.unlink()
        assert run(command, str(ledger)).exit_code == 0
