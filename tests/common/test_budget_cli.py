"""``confide budget``: figures on request, and no torch unless it is asked for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import confide
from confide.common.cli import add_commands
from confide.common.errors import ConfideError

ROOT = Path(confide.__file__).resolve().parent.parent
PLAN = "budget plan --epsilon 8 --delta 1e-5 --records 400 --batch 400 --steps 20"
SPENT = "budget spent --noise-multiplier 1.025 --sampling-rate 0.03125 --steps 320 --delta 1e-5"


def run(line: str) -> Any:
    app = typer.Typer()
    add_commands(app)
    app.callback()(lambda: None)
    return CliRunner().invoke(app, line.split())


def test_plan_gives_the_multiplier_and_what_it_spends() -> None:
    figures = json.loads(run(f"{PLAN} --json").stdout)
    assert figures["noise_multiplier"] == pytest.approx(2.68, abs=0.01)
    assert figures["sampling_rate"] == 1.0
    assert 7.99 <= figures["epsilon_pld"] <= 8.0 < figures["epsilon_rdp"]
    assert "epsilon_prv" not in figures


def test_spent_gives_the_known_answer_by_three_accountants() -> None:
    figures = json.loads(run(f"{SPENT} --prv --json").stdout)
    assert figures["epsilon_pld"] == pytest.approx(3.4409, abs=5e-5)
    assert figures["epsilon_prv"] == pytest.approx(figures["epsilon_pld"], abs=0.02)
    assert figures["epsilon_rdp"] > figures["epsilon_pld"]


def test_a_person_costs_what_a_record_costs_among_as_many_units() -> None:
    line = PLAN.replace("--records", "--units")
    persons = json.loads(run(f"{line} --unit person --json").stdout)
    records = json.loads(run(f"{PLAN} --json").stdout)
    assert (persons.pop("unit"), records.pop("unit")) == ("person", "record")
    assert persons == records
    assert json.loads(run(f"{SPENT} --unit person --json").stdout)["unit"] == "person"
    error = run(f"{line.replace('1e-5', '0.01')} --unit person").exception
    assert isinstance(error, ConfideError)
    assert "more persons" in error.hint
    assert run(f"{PLAN} --unit holder").exit_code != 0


def test_a_plan_of_a_secure_sum_tells_the_share_and_what_is_left_without_masks() -> None:
    alone = json.loads(run(f"{PLAN} --json").stdout)
    shared = json.loads(run(f"{PLAN} --least 8 --colluding 2 --json").stdout)
    assert shared["noise_multiplier"] == alone["noise_multiplier"]
    assert shared["share_multiplier"] == pytest.approx(alone["noise_multiplier"] / 6**0.5)
    assert shared["epsilon_unmasked"] > 2 * shared["epsilon_pld"]
    told = run(f"{PLAN} --least 8 --colluding 2").stdout
    assert "epsilon if every mask fails" in told
    holder = json.loads(run(f"{PLAN} --unit holder --least 80 --colluding 20 --json").stdout)
    assert (holder["unit"], holder["relation"]) == ("holder", "zero-out")


@pytest.mark.parametrize("wrong", ["--unit holder", "--least 8 --colluding 8", "--colluding 1"])
def test_what_is_no_plan_of_a_secure_sum_is_refused_by_name(wrong: str) -> None:
    refused = run(f"{PLAN} {wrong}").exception
    assert isinstance(refused, ConfideError)
    assert refused.code == "privacy.plan"


def test_plan_advises_on_batches_for_as_much_computing_or_as_many_steps() -> None:
    line = PLAN.replace("--batch 400 --steps 20", "--batch 50 --steps 80")
    rows = json.loads(run(f"{line} --json").stdout)["advice"]
    assert [(row["batch"], row["steps"]) for row in rows[:2]] == [(400, 10), (200, 20)]
    assert [row["batch"] for row in rows if row["best"]] == [400]
    shown = run(line).stdout
    assert "as much computing" in shown
    assert shown.index("least noise") < shown.index("asked for")
    line = PLAN.replace("--batch 400 ", "")
    rows = json.loads(run(f"{line} --json").stdout)["advice"]
    assert {row["steps"] for row in rows} == {20}
    assert rows[0]["batch"] == 400
    assert rows[0]["best"]
    assert "as many steps" in run(line).stdout


def test_people_get_a_table() -> None:
    output = run(SPENT).stdout
    assert "epsilon by PLD (the figure)" in output
    assert "3.4409" in output
    assert "add-or-remove-one" in output


def test_no_noise_is_infinite_and_still_json() -> None:
    line = "budget spent --noise-multiplier 0 --sampling-rate 1 --steps 1 --delta 1e-5"
    assert json.loads(run(f"{line} --json").stdout)["epsilon_pld"] is None
    assert "infinite: not private" in run(line).stdout


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (PLAN.replace("1e-5", "0.5"), "privacy.delta"),
        (PLAN.replace("1e-5", "0"), "privacy.delta"),
        (PLAN.replace("--epsilon 8", "--epsilon 0"), "privacy.epsilon"),
        (PLAN.replace("--steps 20", "--steps 0"), "privacy.steps"),
        (SPENT.replace("0.03125", "1.5"), "privacy.steps"),
        (SPENT.replace("1.025", "-1"), "privacy.steps"),
    ],
)
def test_impossible_figures_are_refused_with_a_code(line: str, code: str) -> None:
    error = run(line).exception
    assert isinstance(error, ConfideError)
    assert error.code == code


def test_budget_plan_does_not_import_torch() -> None:
    code = (
        "import sys, typer\n"
        "from confide.common.cli import add_commands\n"
        "app = typer.Typer(); add_commands(app); app.callback()(lambda: None)\n"
        f"app({SPENT.split()!r}, standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'opacus', 'transformers', 'flwr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0
