"""The recipe of docs/how-it-works.md, "How to add a task", followed to the letter: one file and its
name in a list, and every command works with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests import tiny, warm

TOY = '''
"""Yes or no, by one number: a task that is there for a test."""

from __future__ import annotations

from ..text.rows import in_form
from .example import Prediction
from .pooled import PooledTask


class Toy(PooledTask):
    """See the module's docstring."""

    kind = "toy"
    known = ("accuracy",)
    does = "says yes or no"
    described = {"toying": {}}
    learns_from = ("labels",)
    problem_type = "regression"
    answer_code = "print((logits > 0.5).squeeze(-1).tolist())\\n"

    @classmethod
    def head_labels(cls, spec):
        return ("yes",)

    def targets(self, records):
        return [float(in_form(record.target or "") == "positive") for record in records]

    def no_target(self):
        return 0.0

    def made_up_target(self, number):
        return float(number % 2)

    def losses(self, logits, targets):
        return (logits.float().squeeze(-1) - targets) ** 2

    def answers(self, logits):
        return [int(number > 0.5) for number in logits.squeeze(-1).tolist()]

    def references(self, targets):
        return list(map(int, targets.tolist()))

    def tell(self, logits):
        return [Prediction("yes" if one else "no") for one in self.answers(logits)]
'''

COMMANDS = """
import contextlib, io, json, os, sys
from pathlib import Path
place = Path(sys.argv[1])
sys.path.insert(0, str(place / "copy"))
import confide
assert Path(confide.__file__).is_relative_to(place), confide.__file__
from typer.testing import CliRunner
from confide.__main__ import build_app
from confide.common.settings import from_flat
from confide.server.run import run
from confide.simulations.inprocess import federation
from confide.simulations import yardsticks
from confide.simulations.scenario import load_scenario, prepare, run_config

def command(*arguments):
    seen = CliRunner().invoke(build_app(), list(map(str, arguments)))
    assert seen.exit_code == 0, (arguments, seen.output, seen.exception)
    return seen.output

told = {}
scenario = load_scenario(str(place / "toy.json"))
data, config = prepare(scenario), run_config(scenario)
holders = sorted(data.glob("holder-*.jsonl"))
done = run(config, federation(holders, place / "ledgers")).path
report = json.loads((done / "report.json").read_text())
told["failed"] = [check for check in report["checks"] if check["state"] == "failed"]
told["predict"] = command("predict", done, "the day was fine")
told["evaluate"] = json.loads(command("evaluate", done, "--json"))
told["report"] = command("report", "show", done)
told["doctor"] = command("doctor", done), command("doctor", place / "toy.json", "--no-model")
told["check"] = command("client", "check-data", holders[0], "--task", "toy")
command("client", "init", place / "client", "--data", holders[0], "--label", "label")
told["policy"] = (place / "client" / "policy.toml").read_text()
told["settings"] = command("settings", "task.kind")
explained = CliRunner().invoke(build_app(), ["explain", str(done), "the day"])
told["explain"] = str(explained.exception)
command("export", done, "--merged", place / "merged")
told["yardsticks"] = yardsticks._without_a_model(data, from_flat(config))
for where in (done / "adapter", place / "merged"):
    os.chdir(where)
    card = (where / "README.md").read_text()
    code = card.split("```python")[1].split("```")[0]
    code = code.replace('base = "model"', f"base = {str(place / 'model')!r}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    told[where.name] = out.getvalue(), card
print(json.dumps(told))
"""


def test_a_task_is_one_file_and_its_name_in_a_list(root: Path, tree_copy: Path) -> None:
    page = (root / "docs" / "how-it-works.md").read_text("utf-8")
    recipe = re.search(r"\*\*How to add a task\.\*\*(.*?)\n\n", page, re.DOTALL)
    assert recipe is not None
    for named in ("common/tasks/NAME.py", "common/tasks/__init__.py", "`PooledTask`", "`kind`"):
        assert named in recipe.group(1)
    place = tree_copy.parent
    tree_copy.rename(place / "copy")
    tasks = place / "copy" / "common" / "tasks"
    (tasks / "toy.py").write_text(TOY, "utf-8")
    table = (tasks / "__init__.py").read_text("utf-8")
    assert table.count('    "spans",\n') == 1
    added = table.replace('    "spans",\n', '    "spans",\n    "toy",\n')
    (tasks / "__init__.py").write_text(added, "utf-8")

    model = tiny.save_model(place / "model")
    for name, seed in (("train", 0), ("val", 1)):
        tiny.write_jsonl(place / f"{name}.jsonl", tiny.rows(24, seed))
    config = {
        "train.max-length": 32, "round.count": 2, "train.lr": 1.0, "lora.rank": 2,
        "privacy.noise-multiplier": 2.0, "privacy.delta": 1e-3, "run.out": str(place / "runs"),
    }  # fmt: skip
    said = {"task": "toying", "data": {"train": "train.jsonl", "val": "val.jsonl"}}
    said |= {"model": str(model), "holders": 2, "config": config}
    (place / "toy.json").write_text(json.dumps(said), "utf-8")

    done = warm.run(COMMANDS, place, cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["failed"] == []
    assert told["predict"].strip().partition(" ")[0] in ("yes", "no")
    assert told["evaluate"]["metric"] == "accuracy"
    assert "toy" in told["settings"]
    assert "toy" in told["policy"]
    assert "explain.task" in told["explain"]
    assert told["yardsticks"] == []
    for where in ("adapter", "merged"):
        printed, card = told[where]
        assert set(json.loads(printed.lower())) <= {True, False}
        assert "says yes or no" in card or where == "merged"
