"""policy.toml: read strictly, and written so that it says what the defaults are."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from confide.client.guard.contract import Contract
from confide.client.guard.policy import SIMULATION, Policy
from confide.client.guard.policy_file import (
    key_of,
    load_policy,
    policy_text,
    simulated_policy,
    write_policy,
)
from confide.common.errors import ConfideError
from tests import tiny

PIN = "0123456789abcdef" * 4


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_policy_is_read_and_the_rest_are_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, 'max-epsilon = 3\nbase-models = ["a/b"]\nallow-unprotected = false\n')
    assert load_policy(path) == Policy(max_epsilon=3, base_models=("a/b",))
    assert load_policy(write(tmp_path, "")) == Policy()


EVERYTHING = f"""
max-epsilon = 1
max-epsilon-per-run = 0.5
max-delta = 1e-6
min-noise-multiplier = 1
max-clip = 0.5
max-rounds = 3
max-steps-per-round = 4
max-steps-per-run = 5
max-passes = 9.5
max-length = 64
max-copies = 2
max-dropout = 0.1
max-requests-per-day = 11
max-batch = 6
max-rank = 8
max-sampling-rate = 0
max-records-per-person = 7
dtypes = ["bfloat16"]
base-models = ["a/b", "/opt/own model@sha256:{PIN}"]
coordinators = ["The Institute"]
allow-sums = false
roster = "sha256:{PIN}"
openers = ["a", "b"]
min-contributions = 4
colluding = 2
max-epsilon-unmasked = 20
ask-before-run = true
allow-unprotected = true
allow-any-model = true
allow-any-roster = true
allow-any-data = true

[data]
text = "note"
target = "code"
person = "patient"
unit = "person"
tasks = ["classification", "regression"]
labels = ["ü", "b c", "😀"]
low = 1
high = 5.5
format = "text"
"""
CONTRACT = Contract(
    text="note",
    target="code",
    person="patient",
    unit="person",
    tasks=("classification", "regression"),
    labels=("ü", "b c", "😀"),
    low=1.0,
    high=5.5,
)


def test_every_limit_can_be_written(tmp_path: Path) -> None:
    written = tomllib.loads(EVERYTHING)
    assert list(written) == [key_of(f) for f in fields(Policy)]
    assert list(written["data"]) == [f.name for f in fields(Contract)]
    assert load_policy(write(tmp_path, EVERYTHING)) == Policy(
        max_epsilon=1.0,
        max_epsilon_per_run=0.5,
        max_delta=1e-6,
        min_noise_multiplier=1.0,
        max_clip=0.5,
        max_rounds=3,
        max_steps_per_round=4,
        max_steps_per_run=5,
        max_passes=9.5,
        max_length=64,
        max_copies=2,
        max_dropout=0.1,
        max_requests_per_day=11,
        max_batch=6,
        roster=f"sha256:{PIN}",
        openers=("a", "b"),
        min_contributions=4,
        colluding=2,
        max_epsilon_unmasked=20.0,
        allow_any_roster=True,
        max_rank=8,
        max_sampling_rate=0.0,
        max_records_per_person=7,
        dtypes=("bfloat16",),
        base_models=("a/b", f"/opt/own model@sha256:{PIN}"),
        coordinators=("The Institute",),
        allow_sums=False,
        ask_before_run=True,
        allow_unprotected=True,
        allow_any_model=True,
        allow_any_data=True,
        data=CONTRACT,
    )


WRONG = [
    ("max-epsilon = ", "policy.format"),
    ("max-epsilon = 'three'", "policy.format"),
    ("max-epsilon = true", "policy.format"),
    ("max-epsilon = -1", "policy.format"),
    ("max-epsilon = nan", "policy.format"),
    ("max-epsilon = inf", "policy.format"),
    ("max-epsilon = 1" + "0" * 400, "policy.format"),
    ("max-epsilon = [3]", "policy.format"),
    ("max-epsilon = 2026-01-01", "policy.format"),
    ("max-delta = 0.2", "policy.format"),
    ("min-noise-multiplier = -0.1", "policy.format"),
    ("max-rounds = 2.0", "policy.format"),
    ("max-rounds = true", "policy.format"),
    ("max-sampling-rate = 1.5", "policy.format"),
    ("allow-unprotected = 1", "policy.format"),
    ("allow-any-model = 'yes'", "policy.format"),
    ("base-models = 'a/b'", "policy.format"),
    ("base-models = [1]", "policy.format"),
    ("base-models = ['']", "policy.format"),
    ("base-models = ['a/b@sha256:12']", "policy.format"),
    (f"base-models = ['a/b@sha256:{PIN}0']", "policy.format"),
    (f"base-models = ['a/b@sha256:{PIN.upper()}']", "policy.format"),
    (f"base-models = ['@sha256:{PIN}']", "policy.format"),
    (f"roster = '{PIN}'", "policy.format"),
    (f"roster = 'sha256:{PIN[1:]}'", "policy.format"),
    (f"roster = 'sha256:{PIN.upper()}'", "policy.format"),
    (f"roster = ['sha256:{PIN}']", "policy.format"),
    ("min-contributions = 1", "policy.format"),
    ("openers = 'north'", "policy.format"),
    ("dtypes = 'float32'", "policy.format"),
    ("dtypes = ['float16']", "policy.format"),
    ("dtypes = [['float32']]", "policy.format"),
    ("data = 3", "policy.format"),
    ("[data]\ntasks = ['poetry']", "policy.format"),
    ("[data]\nunit = 'persons'", "policy.format"),
    ("[data]\nperson = ['author']", "policy.format"),
    ("[data]\nlow = 'small'", "policy.format"),
    ("[data]\ncolumn = 'text'", "policy.unknown-key"),
    ("max-epsilonn = 3", "policy.unknown-key"),
    ("max_epsilon = 3", "policy.unknown-key"),
    ("[limits]\nmax-epsilon = 3", "policy.unknown-key"),
    ("max-epsilon = 3\nmax-epsilon = 4", "policy.format"),
    ("a = " + "[" * 2000, "policy.format"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=lambda text: text[:40])
def test_a_policy_that_is_wrong_is_refused_with_its_name_and_a_remedy(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        load_policy(write(tmp_path, text))
    assert caught.value.code == expected
    assert str(tmp_path / "policy.toml") in caught.value.message
    assert caught.value.hint


def test_a_value_out_of_range_is_told_with_its_range(tmp_path: Path) -> None:
    with pytest.raises(ConfideError) as caught:
        load_policy(write(tmp_path, "max-delta = 0.2"))
    assert "max-delta = 0.2 is outside [0, 0.1]" in caught.value.message
    assert "0.0001" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("max-epsilonn = 3", "'max-epsilon'"),
        ("dtypes = ['float23']", "'float32'"),
        ("[data]\nunit = 'persons'", "'person'"),
        ("[data]\ntext = 'note'\ntask = ['causal']", "'tasks'"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(
    tmp_path: Path, text: str, meant: str
) -> None:
    with pytest.raises(ConfideError) as caught:
        load_policy(write(tmp_path, text))
    assert meant in caught.value.hint


def test_a_policy_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(ConfideError, match=r"policy\.missing") as caught:
            load_policy(path)
        assert "confide client init" in caught.value.hint
    binary = tmp_path / "policy.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfideError, match=r"policy\.format"):
        load_policy(binary)


# The file that is written


def test_what_is_written_parses_to_exactly_the_defaults(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "new" / "folder")
    assert load_policy(path) == Policy()
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert list(written) == [key_of(f) for f in fields(Policy) if f.name != "data"]


def test_what_is_written_of_a_text_is_read_as_that(tmp_path: Path) -> None:
    path = write_policy(tmp_path, CONTRACT)
    assert load_policy(path) == Policy(data=CONTRACT)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text": ""}, "text"),
        ({"tasks": ()}, "tasks"),
        ({"unit": "person", "person": ""}, "person"),
        ({"target": ""}, "target"),
        ({"labels": ("a",)}, "labels"),
        ({"labels": ("a", "a")}, "labels"),
        ({"labels": ("a", "b,c")}, "labels"),
        ({"labels": ("a", " b")}, "labels"),
        ({"labels": ("a", "")}, "labels"),
        ({"low": 5.5}, "low"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = write_policy(tmp_path, replace(CONTRACT, **changes))
    with pytest.raises(ConfideError, match=r"contract\.format|policy\.format") as caught:
        load_policy(path)
    assert named in caught.value.message
    assert caught.value.hint


def test_every_limit_is_explained_above_its_line() -> None:
    text = policy_text(CONTRACT)
    limits = [f for f in fields(Policy) if f.name != "data"] + list(fields(Contract))
    paragraphs = text.replace("[data]\n", "\n").strip().split("\n\n")[1:]
    paragraphs = [p for p in paragraphs if not p.startswith("# What your text is")]
    assert len(paragraphs) == len(limits)
    for paragraph, limit in zip(paragraphs, limits, strict=True):
        lines = paragraph.splitlines()
        comment = [line for line in lines if line.startswith("# ")]
        value = tomllib.loads("\n".join(lines[len(comment) :]))
        assert list(value) == [key_of(limit)]
        assert 1 <= len(comment) <= 3
        assert all(c.startswith("# ") and len(c) <= 100 for c in comment)


@pytest.mark.parametrize("word", tiny.ODD_WORDS)
def test_a_label_of_any_characters_is_written_as_it_is(tmp_path: Path, word: str) -> None:
    """yoetz#208: of an emoji the escapes of JSON made a file that is no TOML."""
    said = replace(CONTRACT, labels=(word, "other"), text=word)
    assert load_policy(write_policy(tmp_path, said)).data == said


def test_a_policy_is_never_overwritten(tmp_path: Path) -> None:
    own = write(tmp_path, "max-epsilon = 1\n")
    with pytest.raises(ConfideError, match=r"policy\.exists"):
        write_policy(tmp_path)
    assert own.read_text(encoding="utf-8") == "max-epsilon = 1\n"
    own.unlink()
    own.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfideError, match=r"policy\.(exists|write)"):
        write_policy(tmp_path)
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below", Path("/proc/nothing")):
        with pytest.raises(ConfideError, match=r"policy\.write"):
            write_policy(folder)


def test_a_simulated_holder_may_do_everything_that_the_file_beside_its_text_does_not_limit(
    tmp_path: Path,
) -> None:
    data = tmp_path / "holder-00.jsonl"
    assert simulated_policy(data) == SIMULATION
    beside = tmp_path / "holder-00.policy.toml"
    beside.write_text("max-rank = 2\n", encoding="utf-8")
    assert simulated_policy(data) == replace(SIMULATION, max_rank=2)
    beside.write_text("max-ranks = 2\n", encoding="utf-8")
    with pytest.raises(ConfideError, match=r"policy\.unknown-key"):
        simulated_policy(data)
