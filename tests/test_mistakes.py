"""Mistakes that people make: each is told by name and value, with what to do, and no traceback.

Through the real command line, in this process. Status 1 is our own refusal, of two lines; status 2
is wrong usage, answered by the command's own usage line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from confide.__main__ import build_app, run
from confide.common.privacy.ledger import Ledger
from tests import tiny

REFUSED, USAGE = 1, 2
PLAN = "budget plan --epsilon 8 --delta 1e-5 --records 400 --batch 64 --steps 20"
SPENT = "budget spent --noise-multiplier 1 --sampling-rate 0.1 --steps 20 --delta 1e-5"


@dataclass(frozen=True)
class Mistake:
    """A command line in a folder of strange files, and what its answer must contain: the name of
    what is wrong, its value, and the remedy."""

    line: str
    status: int
    says: tuple[str, ...]


def with_policy(text: str) -> str:
    return f"client check-policy policy.toml < {text}"


MISTAKES = [
    # settings
    Mistake("simulate nyt --set privacy.epsilom=3", 1, ("privacy.epsilom=3", "'privacy.epsilon'")),
    Mistake("simulate nyt --set privacy.epsilon", 1, ("privacy.epsilon", "=VALUE")),
    Mistake("simulate nyt --set privacy.epsilon=0", 1, ("privacy.epsilon = 0", "(0, 100]", "8.0")),
    Mistake("simulate nyt --set privacy.epsilon=-1", 1, ("privacy.epsilon = -1", "(0, 100]")),
    Mistake("simulate nyt --set privacy.epsilon=nan", 1, ("privacy.epsilon = nan", "(0, 100]")),
    Mistake("simulate nyt --set privacy.epsilon=eight", 1, ("'eight'", "a number", "= 8.0")),
    Mistake("simulate nyt --set privacy.delta=0.5", 1, ("privacy.delta = 0.5", "(0, 0.1]")),
    Mistake("simulate nyt --set train.batch=many", 1, ("train.batch = 'many'", "a whole number")),
    Mistake("simulate nyt --set train.batch=2.5", 1, ("train.batch = 2.5", "a whole number")),
    Mistake("simulate nyt --set round.count=true", 1, ("round.count = True", "a truth value")),
    Mistake("simulate nyt --set privacy.trust=locl", 1, ("'locl'", "Did you mean 'local'?")),
    Mistake("simulate nyt --set privacy.unit=person", 1, ("data.person", "names no column")),
    Mistake("simulate nyt --set model.name=", 1, ("model.name is empty", "Hub id")),
    Mistake("simulate nyt --set model.name=/m/x.gguf", 1, ("'/m/x.gguf'", "assets unpack")),
    Mistake("simulate nyt --set task.labels=yes", 1, ("task.labels = 'yes'", "at least two")),
    Mistake("simulate nyt --set train.steps=4", 1, ("train.steps = 4", "train.steps = 1")),
    Mistake("simulate nyt --set round.holders=2 --set round.min-holders=3", 1,
            ("round.min-holders = 3", "lower round.min-holders")),
    Mistake("simulate nyt --set data.benchmark=glue/sst-2", 1, ("'glue/sst-2'", "'glue/sst2'")),
    Mistake("simulate nyt --set data.benchmark=glue/cola", 1,
            ("federation.source = 'nyt'", "data.benchmark = 'glue/cola'", "Leave one out.")),
    # scenarios and assets
    Mistake("simulate glue/sst3", 1, ("'glue/sst3'", "Did you mean 'glue/sst2'?")),
    Mistake("assets fetch glue/sst3", 1, ("'glue/sst3'", "Did you mean 'glue/sst2'?")),
    Mistake("simulate nyy", 1, ("'nyy'", "Did you mean 'nyt'?")),
    Mistake("simulate nowhere.toml", 1, ("nowhere.toml", "No such file", "nyt")),
    Mistake("simulate empty.toml", 1, ("model.name", "empty", "Name a Hub id")),
    Mistake("simulate folder.toml", 1, ("folder.toml", "Is a directory", "path of a .toml file")),
    Mistake("simulate latin.toml", 1, ("latin.toml", "is not TOML", "Correct the file")),
    Mistake("simulate typo.toml", 1, ("typo.toml", "'federation.holder'", "'federation.holders'?")),
    Mistake("simulate key.toml", 1, ("key.toml", "'train.bach'", "Did you mean 'train.batch'?")),
    Mistake("assets fetch minilmm", 1, ("'minilmm'", "Did you mean 'minilm'?")),
    # searches
    Mistake("tune nyy", 1, ("'nyy'", "Did you mean 'nyt'?")),
    Mistake("tune nyt --space train.lrr=1..2", 1, ("train.lrr", "'train.lr'")),
    Mistake("tune nyt --space train.lr=2..1", 1, ("train.lr=2..1", "no range", "0.1..10 log")),
    Mistake("tune nyt --space privacy.epsilon=1,8", 1, ("privacy.epsilon", "bench utility")),
    Mistake("tune nyt --trials 0", 2, ("--trials", "x>=1")),
    # the holder's policy
    Mistake(with_policy("max-epsilonn = 3"), 1, ("'max-epsilonn'", "'max-epsilon'")),
    Mistake(with_policy("max_epsilon = 3"), 1, ("'max_epsilon'", "'max-epsilon'")),
    Mistake(with_policy("max-epsilon = 'three'"), 1, ("max-epsilon = 'three'", "= 10.0")),
    Mistake(with_policy("max-delta = 0.5"), 1, ("max-delta = 0.5", "[0, 0.1]", "0.0001")),
    Mistake(with_policy("max-rounds = 2.5"), 1, ("max-rounds = 2.5", "a whole number", "200")),
    Mistake(with_policy("dtypes = 'float32'"), 1, ("dtypes = 'float32'", "not a list", '["float')),
    Mistake(with_policy("[data]\nunit = 'persons'"), 1, ("'persons'", "Did you mean 'person'?")),
    Mistake(with_policy("[data]\ntasks = []"), 1, ("tasks is empty", "causal")),
    Mistake(with_policy("base-models = ['m@sha256:12']"), 1, ("'m@sha256:12'", "64 hexadecimal")),
    Mistake(with_policy("max-epsilon: 3"), 1, ("policy.toml", "line 1", "`limit = value`")),
    Mistake("client check-policy nowhere.toml", 1, ("nowhere.toml", "confide client init")),
    Mistake("client check-policy folder.toml", 1, ("folder.toml", "directory", "client init")),
    Mistake("client check-policy latin.toml", 1, ("latin.toml", "not TOML", "client init")),
    Mistake("client init taken", 1, ("taken/policy.toml", "never overwritten", "another folder")),
    Mistake("client init text.jsonl", 1, ("text.jsonl", "cannot be written", "Name a folder")),
    Mistake("client init", 2, ("Missing argument", "DIR")),
    # the holder's text
    Mistake("client check-data nowhere.jsonl", 1, ("nowhere.jsonl", "No such file", "the path")),
    Mistake(f"client check-data {'x' * 300}.jsonl", 1, ("xxx", "name too long", "the path")),
    Mistake("client check-data folder", 1, ("folder is a folder", "Name the file in it")),
    Mistake("client check-data empty.jsonl", 1, ("empty.jsonl", "no bytes", "Check the file")),
    Mistake("client check-data text.doc", 1, ("text.doc", "'.doc'", ".csv, .jsonl")),
    Mistake("client check-data latin.jsonl", 1, ("latin.jsonl", "UTF-8", "Save it in UTF-8")),
    Mistake("client check-data text.jsonl --text body", 1, ("'body'", "text, label", "--text")),
    Mistake("client check-data text.jsonl --person who", 1, ("'who'", "text, label", "--person")),
    Mistake("client check-data broken.jsonl", 1, ("broken.jsonl", "line 2", "Correct the file")),
    Mistake("client check-data text.jsonl --delta soon", 2, ("--delta", "'soon'")),
    Mistake("client check-dat text.jsonl", 2, ("check-dat", "Did you mean 'check-data'")),
    # budgets
    Mistake(f"{PLAN} --epsilon 0", 1, ("epsilon = 0.0", "(0, inf)", "for example 8")),
    Mistake(f"{PLAN} --epsilon nan", 1, ("epsilon = nan", "(0, inf)", "for example 8")),
    Mistake(f"{PLAN} --epsilon eight", 2, ("--epsilon", "'eight'")),
    Mistake(f"{PLAN} --delta 0.5", 1, ("delta = 0.5", "1/n = 0.0025", "at most 0.0003")),
    Mistake(f"{PLAN} --delta 2", 1, ("delta = 2.0", "(0, 1)", "1e-5")),
    Mistake(f"{PLAN} --steps 0", 1, ("steps = 0", ">= 1", "rounds times steps")),
    Mistake(f"{PLAN} --records 0", 2, ("--records", "0 is not in the range x>=1")),
    Mistake(f"{PLAN} --unit persons", 2, ("--unit", "'persons'", "'person'")),
    Mistake(f"{PLAN} --epsilom 8", 2, ("--epsilom", "--epsilon")),
    Mistake(f"{SPENT} --noise-multiplier -1", 1, ("noise multiplier = -1", "[0, inf)", "Give")),
    Mistake(f"{SPENT} --sampling-rate 1.5", 1, ("rate = 1.5", "(0, 1]", "batch / records")),
    Mistake(f"{SPENT} --delta 0", 1, ("delta = 0.0", "(0, 1)", "1e-5")),
    Mistake("budget plann", 2, ("plann", "Did you mean 'plan'")),
    # ledgers
    Mistake("ledger show nowhere.sqlite", 1, ("nowhere.sqlite", "Check the path")),
    Mistake("ledger show folder", 1, ("no ledger file at folder", "Check the path")),
    Mistake("ledger show text.jsonl", 1, ("text.jsonl is not a sound database", "whole copy")),
    Mistake("ledger show empty.sqlite", 1, ("empty.sqlite is not a sound", "whole copy")),
    Mistake("ledger show good.sqlite --delta 2", 1, ("delta = 2.0", "(0, 1)", "1e-5")),
    Mistake("ledger verify text.jsonl", 1, ("text.jsonl", "Do not train with this ledger")),
    Mistake("ledger verify good.sqlite --head 00", 1, ("the entry 00", "Do not train")),
    Mistake("ledger export good.sqlite --out text.jsonl", 1, ("text.jsonl", "File exists",
                                                              "another file")),
    Mistake("ledger shwo good.sqlite", 2, ("shwo", "Did you mean 'show'")),
    # runs and reports
    Mistake("report show", 1, ("no run under 'runs'", "confide simulate")),
    Mistake("report show folder", 1, ("'folder' is not a run folder", "below runs/")),
    Mistake("report show text.jsonl", 1, ("'text.jsonl' is not a run folder", "below runs/")),
    Mistake("report verify nowhere", 1, ("'nowhere'", "below runs/")),
    Mistake("predict folder", 2, ("Missing argument", "TEXT")),
    Mistake("predict nowhere words", 1, ("'nowhere' is not a run folder", "below runs/")),
    Mistake("predict lost words", 1, ("'bert-bse-uncased'", "assets fetch", "Hub id")),
    # the doctor
    Mistake("doctor", 2, ("Missing argument", "CONFIG|RUN")),
    Mistake("doctor nyy", 1, ("'nyy'", "Did you mean 'nyt'?")),
    Mistake("doctor runs/nowhere", 1, ("runs/nowhere", "a run folder, or 'latest'")),
    Mistake("doctor nowhere.toml", 1, ("nowhere.toml", "No such file", "a .toml file")),
    Mistake("doctor latin.toml", 1, ("latin.toml", "is not TOML", "Correct the file")),
    Mistake("doctor folder", 1, ("'folder' is not a run folder", "below runs/")),
    Mistake("doctor key.toml", 1, ("key.toml", "'train.bach'", "Did you mean 'train.batch'?")),
    Mistake("doctor flat.toml", 1, ("privacy.epsilon = 0", "(0, 100]", "8.0")),
    # benchmarks, and no command at all
    Mistake("bench step --models bret", 1, ("'bret'", "Known:")),
    Mistake("bench utility --epsilons eight", 1, ("'eight'", "or off")),
    Mistake("simulat nyt", 2, ("simulat", "Did you mean 'simulate'")),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of all sorts, good and broken, to be named in a command."""
    tiny.write_jsonl(tmp_path / "text.jsonl", [{"text": "a day", "label": "fine"}] * 3)
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    (tmp_path / "latin.jsonl").write_bytes('{"text": "été", "label": "x"}\n'.encode("latin-1"))
    (tmp_path / "latin.toml").write_bytes('source = "été"\n'.encode("latin-1"))
    (tmp_path / "text.doc").write_text("a day")
    for name in ("empty.jsonl", "empty.toml", "empty.sqlite"):
        (tmp_path / name).touch()
    for name in ("folder", "folder.toml", "taken"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken" / "policy.toml").write_text("")
    (tmp_path / "typo.toml").write_text('[federation]\nsource = "nyt"\nholder = 2\n')
    (tmp_path / "key.toml").write_text("[train]\nbach = 3\n")
    (tmp_path / "flat.toml").write_text('"privacy.epsilon" = 0\n')
    Ledger.open(tmp_path / "good.sqlite").close()
    (tmp_path / "lost" / "adapter").mkdir(parents=True)  # a run whose base model is not here
    (tmp_path / "lost" / "config.toml").write_text(
        '[model]\nname = "bert-bse-uncased"\n[task]\nlabels = "no,yes"\n'
    )
    (tmp_path / "lost" / "metrics.jsonl").touch()
    weights = tmp_path / "lost" / "adapter" / "adapter_model.safetensors"
    save_file({"weight": torch.zeros(1)}, weights)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def confide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Callable[[str], tuple[int, str]]:
    monkeypatch.setenv("COLUMNS", "200")  # no line is broken in a name
    monkeypatch.setenv("TERMINAL_WIDTH", "200")

    def call(line: str) -> tuple[int, str]:
        command, _, policy = line.partition(" < ")
        (folder / "policy.toml").write_text(policy, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["confide", *command.split()])
        status = run(lambda: build_app()())
        out, err = capsys.readouterr()
        assert out == "", "what went wrong belongs on stderr"
        return status, err

    return call


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.line[:70])
def test_a_mistake_is_told_by_name_and_value_with_what_to_do(
    confide: Callable[[str], tuple[int, str]], mistake: Mistake
) -> None:
    status, told = confide(mistake.line)
    assert status == mistake.status
    assert [words for words in mistake.says if words not in told] == []
    assert "Traceback" not in told
    if status == REFUSED:
        first, hint = told.splitlines()
        assert first.startswith("error [")
        assert hint.rstrip().endswith((".", "?")), hint
    else:
        assert "Usage:" in told


def test_there_are_enough_mistakes() -> None:
    assert len({mistake.line for mistake in MISTAKES}) == len(MISTAKES) >= 30
    assert {mistake.status for mistake in MISTAKES} == {REFUSED, USAGE}
