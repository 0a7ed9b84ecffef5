"""``confide client init`` and ``check-data``: counts and warnings, and never a record."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from confide.__main__ import build_app, run
from confide.client.guard.contract import Contract, check_contract
from confide.client.guard.policy import Policy
from confide.client.guard.policy_file import load_policy
from confide.client.text.check_data import propose_contract
from confide.common.privacy.ledger import Ledger
from tests import tiny

Confide = Callable[..., tuple[int, str, str]]
FAILED = 1
MARKER = "zqx"


@pytest.fixture
def confide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Confide:
    """The command line in this process: status, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["confide", *map(str, arguments)])
        status = run(lambda: build_app()())
        return status, *capsys.readouterr()

    return call


def check(confide: Confide, *arguments: str | Path) -> dict[str, Any]:
    status, out, err = confide("client", "check-data", *arguments, "--json")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def marked(folder: Path, count: int = 300, **changes: Any) -> Path:
    """A marker in every text, label and person."""
    rows = [
        {
            "text": f"{MARKER}t{i} was here today",
            "label": f"{MARKER}l{i % 2}",
            "person": f"{MARKER}p{i // 3}",
        }
        | changes
        for i in range(count)
    ]
    return tiny.write_jsonl(folder / "text.jsonl", rows)


def test_init_writes_the_defaults_and_says_where(confide: Confide, tmp_path: Path) -> None:
    status, out, err = confide("client", "init", tmp_path / "holder")
    path = tmp_path / "holder" / "policy.toml"
    assert (status, err) == (0, "")
    assert str(path) in out
    assert load_policy(path) == Policy()
    status, out, err = confide("client", "init", tmp_path / "holder")
    assert (status, out) == (FAILED, "")
    assert "policy.exists" in err
    status, out, _ = confide("client", "init", tmp_path / "other", "--json")
    assert json.loads(out) == {"policy": str(tmp_path / "other" / "policy.toml")}


def test_a_policy_is_shown_as_the_holder_reads_it(confide: Confide, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('max-epsilon = 3\n[data]\ntasks = ["causal"]\n', encoding="utf-8")
    status, out, err = confide("client", "check-policy", path)
    assert (status, err) == (0, "")
    changed = [line.split()[:2] for line in out.splitlines() if "not the default" in line]
    assert changed[0] == ["max-epsilon", "3.0"]
    assert len(changed) == 1  # what a text is has no default
    assert "data.tasks" in out
    assert len(out.splitlines()) == len(fields(Policy)) - 1 + len(fields(Contract))
    _, out, _ = confide("client", "check-policy", path, "--json")
    assert json.loads(out)["max-epsilon"] == 3.0
    assert json.loads(out)["data.tasks"] == ["causal"]


def test_counts_are_right(confide: Confide, tmp_path: Path) -> None:
    found = check(confide, marked(tmp_path), "--person", "person")
    assert (found["records"], found["persons"], found["most_of_a_person"]) == (300, 100, 3)
    assert found["labels"] == [["", 150], ["", 150]]
    assert found["words"] == [4, 4, 4]
    lengths = [{"text": "a " * n, "label": "x"} for n in range(1, 101)]
    path = tiny.write_jsonl(tmp_path / "long.jsonl", lengths)
    assert check(confide, path)["words"] == [50.5, 95, 100]


def test_labels_are_counted_by_the_names_that_were_given(confide: Confide, tmp_path: Path) -> None:
    path = marked(tmp_path)
    found = check(confide, path, "--labels", f"{MARKER}l1, {MARKER}l7")
    assert found["labels"] == [[f"{MARKER}l1", 150], [f"{MARKER}l7", 0], ["", 150]]
    assert any("150 records have a label that was not named" in w for w in found["warnings"])


@pytest.mark.parametrize("arguments", [(), ("--json",)])
@pytest.mark.parametrize("columns", [("--person", "person"), ("--label", "text"), ("--label", "")])
def test_nothing_of_any_record_is_printed(
    confide: Confide, tmp_path: Path, arguments: tuple[str, ...], columns: tuple[str, ...]
) -> None:
    status, out, err = confide("client", "check-data", marked(tmp_path), *columns, *arguments)
    assert status == 0
    assert MARKER not in out.replace(str(tmp_path), "") + err
    assert "nothing of it was sent" in out or "--json" in arguments


BROKEN = [
    (f'{{"text": "{MARKER}1", "label"', "data.format"),
    (json.dumps({"text": f"{MARKER}1"}), "data.missing-column"),
    (json.dumps({"text": "", "label": f"{MARKER}1"}), "data.bad-value"),
    (json.dumps({"text": f"{MARKER}1", "label": {MARKER: 1}}), "data.bad-value"),
    ("", "data.empty"),
    (f"{MARKER}\0", "data.binary"),
]


@pytest.mark.parametrize(("content", "code"), BROKEN)
def test_a_broken_file_is_refused_without_quoting_it(
    confide: Confide, tmp_path: Path, content: str, code: str
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(content, encoding="utf-8")
    status, out, err = confide("client", "check-data", path)
    assert (status, out) == (FAILED, "")
    assert f"[{code}]" in err
    assert MARKER not in err
    assert len(err.splitlines()) == 2


def warned(confide: Confide, path: Path, *arguments: str) -> str:
    return " ".join(check(confide, path, *arguments)["warnings"])


def test_an_ordinary_file_gives_no_warning(confide: Confide, tmp_path: Path) -> None:
    assert check(confide, marked(tmp_path))["warnings"] == []


def test_warnings_say_what_a_run_would_stumble_over(confide: Confide, tmp_path: Path) -> None:
    few = marked(tmp_path, count=199)
    assert "199 records are few" in warned(confide, few)
    assert "few" not in warned(confide, marked(tmp_path, count=200))
    same = marked(tmp_path, text=f"{MARKER} the same")
    assert "299 records repeat" in warned(confide, same)
    assert "one word long" in warned(confide, marked(tmp_path, text=MARKER))
    assert "same label" in warned(confide, marked(tmp_path, label=MARKER))
    path = marked(tmp_path)
    assert "Most labels" in warned(confide, path, "--label", "text")
    assert "not below 1/300" in warned(confide, path, "--delta", str(1 / 300))
    assert "not below" not in warned(confide, path, "--delta", "0.0033")
    persons = warned(confide, path, "--person", "person")
    assert "100 persons are few" in persons
    assert 'unit = "person"' in persons
    assert "not below 1/100" in warned(confide, path, "--person", "person", "--delta", "0.01")
    assert "300 records name no person" in warned(
        confide, marked(tmp_path, person=None), "--person", "person"
    )
    one = warned(confide, marked(tmp_path, person=MARKER), "--person", "person")
    assert "One person has 300 records" in one


def test_what_a_text_is_is_proposed_and_checked(confide: Confide, tmp_path: Path) -> None:
    path = marked(tmp_path)
    columns = ("--label", "label", "--person", "person")
    status, out, err = confide("client", "init", tmp_path / "holder", "--data", path, *columns)
    assert (status, err) == (0, "")
    assert MARKER not in out.replace(str(tmp_path), "")
    policy = tmp_path / "holder" / "policy.toml"
    said = load_policy(policy).data
    assert said is not None
    assert (said.unit, said.person, said.tasks) == ("person", "person", ("classification",))
    assert len(said.labels) == 2
    with path.open("a", encoding="utf-8") as file:
        file.write('{"text": "a day"}\nno record\n{"text": "a", "label": "b", "person": "c"}\n')
    found = check(confide, path, "--policy", str(policy))
    assert (found["records"], found["unfit"]) == (300, 3)
    assert any("3 rows are no record" in warning for warning in found["warnings"])
    assert "not used" in confide("client", "check-data", path, "--policy", policy)[1]


@pytest.mark.parametrize(
    ("rows", "label", "tasks"),
    [
        ([{"text": "a", "label": "0.5"}, {"text": "b", "label": "3"}], "label", ("regression",)),
        ([{"text": "a", "label": "0"}, {"text": "b", "label": "1"}], "label", ("classification",)),
        ([{"text": "a"}], "", ("causal", "masked", "spans")),
        ([{"text": str(i), "label": f"{i} x"} for i in range(200)], "label", ("seq2seq", "causal")),
        ([{"text": [{"role": "user", "content": "a"}]}], "", ("causal",)),
    ],
)
def test_a_proposal_is_what_the_file_looks_like(
    tmp_path: Path, rows: list[dict[str, Any]], label: str, tasks: tuple[str, ...]
) -> None:
    said = propose_contract(tiny.write_jsonl(tmp_path / "text.jsonl", rows), label=label)
    check_contract(said)
    assert said.tasks == tasks


def test_rows_that_are_not_used_are_told_by_file_and_line(confide: Confide, tmp_path: Path) -> None:
    """What is broken is told to the administrator, by line, and to nobody else."""
    path = marked(tmp_path)
    confide("client", "init", tmp_path, "--data", path, "--label", "label")
    odd = [f'{{"text": "{MARKER}"}}', "no record", f'{{"text": "{MARKER} a", "label": "b"}}']
    with path.open("a", encoding="utf-8") as file:
        file.write("\n\n" + "\n".join(odd) + "\n" + "broken\n" * 30)
    words = ["client", "check-data", path, "--policy", tmp_path / "policy.toml"]
    found = json.loads(confide(*words, "--json")[1])
    assert (found["unfit"], len(found["broken"])) == (33, 20)
    assert all(f"line {303 + i}" in line for i, line in enumerate(found["broken"]))
    assert all("text.jsonl" in line for line in found["broken"])
    assert "is not a JSON object" in found["broken"][1]
    out = confide(*words)[1]
    assert "line 303" in out
    assert "line 322" in out
    assert "13 more rows" in out


def test_a_join_tells_which_lines_are_not_used(
    confide: Confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining_alone(monkeypatch)
    words = [kit(tmp_path / "kit"), *holder(tmp_path), "--yes", "--new-ledger"]
    with (tmp_path / "text.jsonl").open("a", encoding="utf-8") as file:
        file.write("no record\n")
    status, out, _ = confide("client", "join", *words)
    assert status == 0
    assert "line 25 is not a JSON object" in out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--person", "person", "--target", "label", "--text", "text"), "contract.unit"),
        (("--person", "patient"), "contract.person"),
        (("--label", "stars"), "contract.target"),
        (("--text", "review"), "contract.text"),
    ],
)
def test_a_join_that_names_other_columns_than_the_policy_is_refused(
    confide: Confide,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    code: str,
) -> None:
    """Who thinks that persons are protected must not be told "joined" where records are."""
    started = joining_alone(monkeypatch)
    words = [kit(tmp_path / "kit"), *holder(tmp_path), "--yes", "--new-ledger"]
    status, _, err = confide("client", "join", *words, *options)
    assert (status, f"[{code}]" in err, started) == (FAILED, True, [])
    assert "[data]" in err
    by_person = tiny.DATA_TABLE + 'unit = "person"\n'
    (tmp_path / "own.toml").write_text(by_person, encoding="utf-8")
    agreed = ("--person", "person", "--label", "label")
    assert confide("client", "join", *words, *agreed)[0] == 0
    (tmp_path / "own.toml").write_text("", encoding="utf-8")
    assert "--person person --data" not in (told := confide("client", "join", *words, *agreed)[2])
    assert "--target label --person person" in told


@pytest.mark.parametrize("header", ["review ,label", "r\u00e9sum\u00e9,label", "Your words?,label"])
def test_the_administrator_sees_which_columns_there_are(
    confide: Confide, tmp_path: Path, header: str
) -> None:
    path = tmp_path / "text.csv"
    path.write_text(f"{header}\nfine words,x\n", encoding="utf-8")
    policy = tmp_path / "policy.toml"
    policy.write_text(tiny.DATA_TABLE, encoding="utf-8")
    for options in ((), ("--policy", str(policy))):
        status, _, err = confide("client", "check-data", path, *options)
        assert (status, "data.missing-column" in err) == (FAILED, True)
        assert header.split(",", maxsplit=1)[0].strip() in err
    name = header.split(",", maxsplit=1)[0].strip()
    assert confide("client", "check-data", path, "--text", name)[0] == 0


ALIKE = [
    "Ana",
    "ana",
    "A na",
    "Ana\u200b",
    "\uff21na",
    "007",
    "7",
    "Ben",
    "Jose\u0301",
    "Jos\u00e9",
]


def test_persons_and_labels_that_look_like_one_are_told(confide: Confide, tmp_path: Path) -> None:
    """khmer-ocr#9: what Unicode calls equal is one person; what only looks so is asked about."""
    rows = [{"text": f"a day {i}", "label": "x", "person": who} for i, who in enumerate(ALIKE)]
    path = tiny.write_jsonl(tmp_path / "text.jsonl", rows)
    found = check(confide, path, "--person", "person")
    assert found["persons"] == len(ALIKE) - 1
    assert "7 persons differ from another only by case" in " ".join(found["warnings"])
    rows = [{"text": f"a day {i}", "label": "xX"[i % 2]} for i in range(20)]
    path = tiny.write_jsonl(tmp_path / "labels.jsonl", rows)
    assert "2 labels differ from another only by case" in warned(confide, path)


def test_answers_are_not_counted_as_classes(confide: Confide, tmp_path: Path) -> None:
    rows = [
        {
            "text": [{"role": "user", "content": f"why {i}"}],
            "label": f"because of {i}",
        }
        for i in range(300)
    ]
    path = tiny.write_jsonl(tmp_path / "chat.jsonl", rows)
    for options in ((), ("--label", ""), ("--task", "causal"), ("--target", "label")):
        found = check(confide, path, *options)
        assert found["labels"] == []
        assert "labels" not in " ".join(found["warnings"])
    written = tiny.write_jsonl(tmp_path / "w.jsonl", [{**r, "text": str(r["text"])} for r in rows])
    assert len(check(confide, written)["labels"]) == len(rows)
    assert check(confide, written, "--task", "seq2seq")["labels"] == []
    status, _, err = confide("client", "check-data", path, "--task", "casual")
    assert (status, "causal" in err) == (FAILED, True)


def test_half_of_an_instruction_is_refused_with_the_way_out(
    confide: Confide, tmp_path: Path
) -> None:
    rows = [{"instruction": f"do {i}", "input": f"with {i}", "output": "so"} for i in range(9)]
    path = tiny.write_jsonl(tmp_path / "text.jsonl", rows)
    for command in (("check-data", path), ("init", tmp_path / "own", "--data", path)):
        half = confide("client", *command, "--text", "instruction", "--target", "output")
        assert (half[0], "data.half" in half[2], "instruction,input" in half[2]) == (1, True, True)
        whole = ("--text", "instruction,input", "--target", "output")
        assert confide("client", *command, *whole)[0] == 0
    said = load_policy(tmp_path / "own" / "policy.toml").data
    assert said is not None
    assert said.text == "instruction,input"


def test_a_text_of_which_nothing_fits_is_told(confide: Confide, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(tiny.DATA_TABLE, encoding="utf-8")
    err = confide("client", "check-data", marked(tmp_path), "--policy", policy)[2]
    assert "data.unfit" in err


def test_a_rare_label_is_counted_and_not_named(confide: Confide, tmp_path: Path) -> None:
    rows = [{"text": f"a day {i}", "label": "x" if i else MARKER} for i in range(300)]
    path = tiny.write_jsonl(tmp_path / "rare.jsonl", rows)
    assert warned(confide, path) == "1 labels have fewer than 10 records: too few to be learnt."


def kit(folder: Path, bundles: str = f'["{"a" * 64}"]', expires: str = "2999-01-01") -> Path:
    folder.mkdir()
    (folder / "kit.toml").write_text(
        'schema = "confide-kit/1"\nname = "ward"\ncoordinator = "localhost"\n'
        f'fleet = "localhost:1"\nbundles = {bundles}\nexpires = "{expires}"\n'
    )
    (folder / "ca.crt").touch()
    (folder / "node.key").touch(mode=0o600)
    (folder / "policy.toml").touch()
    return folder


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"bundles": "[]"}, "kit.no-bundle"), ({"expires": "2020-01-01"}, "kit.expired")],
)
def test_a_kit_that_could_not_take_part_is_said_before_anything_is_read(
    confide: Confide, tmp_path: Path, changes: dict[str, str], code: str
) -> None:
    folder = kit(tmp_path / "kit", **changes)
    status, out, err = confide("client", "join", folder, "--data", tmp_path / "none.jsonl")
    assert (status, out) == (FAILED, "")
    assert f"[{code}]" in err
    assert len(err.splitlines()) == 2


def test_a_join_that_nobody_can_be_asked_about_starts_no_ledger(
    confide: Confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = joining_alone(monkeypatch)
    words = ["client", "join", kit(tmp_path / "kit"), *holder(tmp_path), "--yes"]
    status, out, err = confide(*words)
    assert (status, out, started) == (FAILED, "", [])
    assert "[join.new-ledger]" in err
    assert "--new-ledger" in err
    ledger = tmp_path / "text.jsonl.ledger.sqlite"
    assert not ledger.exists()
    status, out, _ = confide(*words, "--new-ledger")
    assert (status, len(started)) == (0, 1)
    assert "There is no ledger" in out
    assert "a new one, " in out
    with Ledger.open(ledger, create=False) as made:
        assert [entry.payload["state"] for entry in made.entries()] == ["created"]
        before = made.ledger_id
    status, out, _ = confide(*words)  # from now on it is there, and nothing is asked
    assert (status, len(started)) == (0, 2)
    assert "There is no ledger" not in out
    assert "epsilon 10 of 10 is left" in out
    with Ledger.open(ledger, create=False) as same:
        assert same.ledger_id == before


def test_a_mistyped_ledger_is_asked_about_and_one_beside_it_is_named(
    confide: Confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = joining_alone(monkeypatch)
    words = ["client", "join", kit(tmp_path / "kit"), *holder(tmp_path)]
    confide(*words, "--yes", "--new-ledger")
    monkeypatch.setattr("typer.confirm", lambda question: False)
    status, out, _ = confide(*words, "--ledger", tmp_path / "text.jsonl.leger.sqlite")
    assert (status, len(started)) == (FAILED, 1)
    assert "Beside it lie: text.jsonl.ledger.sqlite" in out
    assert "Nothing was started." in out


def test_a_no_to_taking_part_leaves_no_ledger(
    confide: Confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = joining_alone(monkeypatch)
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda question: asked.append(question) or len(asked) < 2)
    status, _, _ = confide("client", "join", kit(tmp_path / "kit"), *holder(tmp_path))
    assert (status, started) == (FAILED, [])
    assert asked == ["Start a new ledger?", "Take part?"]
    assert not (tmp_path / "text.jsonl.ledger.sqlite").exists()


def test_a_label_of_the_text_commands_no_terminal(
    confide: Confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining_alone(monkeypatch)
    words = [kit(tmp_path / "kit"), *holder(tmp_path), "--yes", "--new-ledger"]
    policy = tmp_path / "own.toml"
    policy.write_text(policy.read_text().replace('"negative"', '"\\u001b[2Jnegative", "negative"'))
    status, out, _ = confide("client", "join", *words)
    assert status == 0
    assert "\x1b" not in out
    assert "[2Jnegative" in out


def holder(folder: Path) -> list[str | Path]:
    """The options of a join that name a text and its policy."""
    data = tiny.write_jsonl(folder / "text.jsonl", tiny.rows(24, seed=1))
    policy = folder / "own.toml"
    policy.write_text(tiny.DATA_TABLE)
    return ["--data", data, "--policy", policy]


def joining_alone(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """As a user without privilege joins, but that the processes are noted and not started."""
    started: list[object] = []
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(
        "confide.client.site.join.run", lambda joining, _: started.append(joining) or 0
    )
    return started


def test_the_status_of_nobody_is_a_failure_with_what_to_do(
    confide: Confide, tmp_path: Path
) -> None:
    status, out, err = confide("client", "status", tmp_path / "socket")
    assert (status, out) == (FAILED, "")
    assert "resident.unreachable" in err
    assert "confide client join" in err


def test_the_status_is_shown_and_is_the_exit_status(
    confide: Confide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"connected": True, "code": "connected", "since": 1_800_000_000}
    report = {"alive": True, "connection": connection, "ledger": {"epsilon": 1.5}}
    report |= {"name": "ward", "left": ["epsilon 6.5 of 8 is left"]}
    monkeypatch.setattr("confide.client.site.join.status", lambda path: report)
    status, out, _ = confide("client", "status", kit(tmp_path / "kit"))
    assert status == 0
    assert "ward" in out
    assert '{"epsilon": 1.5}' in out
    assert "epsilon 6.5 of 8 is left" in out
    assert json.loads(confide("client", "status", tmp_path / "kit", "--json")[1]) == report
    for without in ({"alive": False}, {"connection": {**connection, "connected": False}}):
        monkeypatch.setattr("confide.client.site.join.status", lambda _, w=without: report | w)
        assert confide("client", "status", tmp_path / "kit")[0] == FAILED
    del report["connection"]  # as an older resident answers
    monkeypatch.setattr("confide.client.site.join.status", lambda path: report)
    assert confide("client", "status", tmp_path / "kit")[0] == FAILED
