"""What can be known before anything starts is told before anything starts: FAULTS F20, M6, F27."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from confide.__main__ import build_app, run
from confide.common.errors import ConfideError
from confide.common.settings import Settings, from_flat
from confide.simulations import flower, ready
from confide.simulations.doctor import diagnose, objection, unseen
from confide.simulations.scenario import load_scenario, run_config, text_of
from tests import first_words, tiny
from tests.first_words import SLIPS, Slip

COLUMNS = 80


class StartedError(Exception):
    """Flower would have started."""


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slips")
    first_words.furnish(folder)
    return folder


@pytest.fixture
def call(
    furnished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """The real command line; where Flower, or a search, would start it fails."""

    def start(*_: object, **__: object) -> NoReturn:
        raise StartedError

    monkeypatch.chdir(furnished)
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setattr(flower, "simulate", start)

    def called(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["confide", *arguments])
        status = run(lambda: build_app()())
        return (status, *capsys.readouterr())

    return called


@pytest.mark.parametrize("command", ["simulate", "doctor"])
@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.what)
def test_a_mistake_is_told_before_anything_starts(call: Any, command: str, slip: Slip) -> None:
    status, _, told = call(*first_words.arguments(command, slip))
    assert status == 1
    lines = told.splitlines()
    first = next(line for line in lines if line.startswith("error ["))
    assert first.startswith(f"error [{slip.code}] ")
    assert lines[lines.index(first) + 1].rstrip().endswith((".", "?")), "what to do"
    assert "Traceback" not in told
    assert "\x1b" not in told


def test_what_is_sound_starts(call: Any) -> None:
    status, out, told = call("doctor", "sound.json")
    assert (status, told) == (0, ""), out
    status, _, told = call("simulate", "sound.json")
    assert "StartedError" in told, "and nothing else stopped it"


def test_a_search_and_a_run_over_real_holders_look_first(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = call("tune", "sound.json", "--space", "model.name=model,mute", "--trials", "1")[2]
    assert told.startswith("error [model.tokenizer]")
    from confide.server.deploy import federation

    monkeypatch.setattr(federation, "find_federation", lambda folder: folder)
    line = ("server", "run", "sound.json", "--federation", "federation", "--set", "model.name=torn")
    assert "error [model.missing]" in call(*line)[2]


def test_the_doctor_takes_changes_and_tells_programs(call: Any) -> None:
    """F27: ``doctor --set``, and a scenario of one's own."""
    status, out, _ = call("doctor", "sound.json", "--set", "privacy.trust=off", "--json")
    told = json.loads(out)
    assert (status, told["cannot_run"]) == (1, None)
    assert "noise-off" in {finding["name"] for finding in told["findings"]}
    status, out, err = call("doctor", "sound.json", "--set", "lora.targets=quary", "--json")
    assert (status, err) == (1, "")
    assert json.loads(out)["cannot_run"]["code"] == "settings.range"
    line = ("doctor", "sound.json", "--set", "lora.targets=quary", "--no-model")
    assert call(*line)[0] == 0
    assert "'train.lr'" in call("doctor", "sound.json", "--set", "learning_rate=1")[2]


def test_a_finished_run_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"doctor\.target.*has run"):
        diagnose(str(tmp_path), ["train.lr=1"])


def test_a_model_that_an_asset_gives_is_no_mistake_to_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    found = diagnose("nyt")
    assert unseen(found).endswith("confide assets fetch minilm")
    assert objection(found) is None
    with pytest.raises(ConfideError) as caught:
        ready.check_files(run_config(load_scenario("nyt"))["model.name"])
    assert caught.value.hint == "Run: confide assets fetch minilm"


def settings(**changes: Any) -> Settings:
    return from_flat({"model.name": "m", "task.labels": "a,b"} | changes)


def test_a_full_disk_is_told_before_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(ConfideError, match=r"disk\.full.*1 MiB left"):
        ready.check_place(settings())


def test_looking_at_a_run_folder_makes_none(tmp_path: Path) -> None:
    ready.check_place(settings(**{"run.out": str(tmp_path / "a" / "b")}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "config.json").write_text("{"), "no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "no model_type"),
        (lambda f: (f / "model.safetensors").unlink(), "no safetensors weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cut off or damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99), "cut off or damaged"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
            ),
            "model-00002-of-00002.safetensors is not in its folder",
        ),
    ],
)
def test_a_model_folder_that_is_not_whole_is_named(tmp_path: Path, harm: Any, says: str) -> None:
    tiny.save_model(tmp_path / "m")
    ready.check_files(str(tmp_path / "m"))
    harm(tmp_path / "m")
    with pytest.raises(ConfideError) as caught:
        ready.check_files(str(tmp_path / "m"))
    assert caught.value.code == "model.missing"
    assert says in caught.value.message


def test_other_text_is_used_where_it_is_named(tmp_path: Path) -> None:
    """``--set data.path=FOLDER``: it is looked at, too, and not the scenario's own."""
    folder = tiny.save_federation(tmp_path / "mine")
    scenario = load_scenario("nyt")
    chosen = from_flat(run_config(scenario, [f"data.path={folder}"]))
    assert text_of(scenario, chosen) == folder
    with pytest.raises(ConfideError, match=r"data\.missing-file"):
        text_of(scenario, from_flat(run_config(scenario, ["data.path=nowhere"])))


@pytest.mark.parametrize(
    "line",
    [
        "predict nowhere words",
        "evaluate nowhere",
        "explain nowhere words",
        "export nowhere --merged there",
        "report show nowhere",
        "report verify nowhere",
        "simulate nyt --set model.name=/nowhere/base",
        "tune nyt --set model.name=/nowhere/base",
        "simulate nyt --set train.learning_rate=1",
    ],
)
def test_what_files_tell_is_told_without_torch(line: str, tmp_path: Path) -> None:
    """It is most of the seconds that such a message takes."""
    code = (
        "import sys; from confide.__main__ import build_app, run; "
        "status = run(lambda: build_app()()); "
        "print(status, sorted({'torch', 'transformers', 'peft'} & sys.modules.keys()))"
    )
    environment = os.environ | {"PYTHONPATH": str(first_words.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "1 []\n"
    assert done.stderr.startswith("error [")


@pytest.mark.parametrize(
    "changes", [{}, {"round__holders": 9}, {"round__holders": 3, "round__min_holders": 3}]
)
def test_holders_that_a_simulation_will_never_have_are_told_at_once(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """FAULTS F15: one holder, and ten minutes without a word."""
    data = tiny.save_federation(tmp_path / "data", holders=2 if changes else 1)
    settings = from_flat(tiny.config(Path("m"), data, tmp_path, **changes))
    with pytest.raises(ConfideError, match=r"The federation has [12] holders") as caught:
        ready.check_text(data, settings)
    assert caught.value.code == "run.too-few-holders"
    assert "holders = " in caught.value.hint
