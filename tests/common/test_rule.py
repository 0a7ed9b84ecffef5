"""``confide settings``, and the names of other libraries: FAULTS F25. Each leads to the setting
that it means, in every place where a setting may be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from confide.common.cli import add_commands
from confide.common.errors import ConfideError
from confide.common.settings import from_flat, hint, known_keys, rules, spelled
from confide.common.settings.rule import found
from confide.simulations.scenario import load_scenario, run_config
from confide.simulations.space import parse_space
from tests import tiny

COLUMNS = 80
GOOD = {"model.name": "m", "task.labels": "no,yes"}
# What people write who come from transformers, TRL, PEFT, Opacus or Flower.
USUAL = {
    "train.learning_rate": "train.lr",
    "learning_rate": "train.lr",
    "learning-rate": "train.lr",
    "--learning_rate": "train.lr",
    "per_device_train_batch_size": "train.batch",
    "train.batch_size": "train.batch",
    "gradient_accumulation_steps": "train.memory",
    "max_physical_batch_size": "train.memory",
    "max_steps": "train.steps",
    "num_train_epochs": "round.count",
    "num-server-rounds": "round.count",
    "round.num_rounds": "round.count",
    "optim": "train.optimizer",
    "lr_scheduler_type": "train.schedule",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "early_stopping_patience": "round.patience",
    "eval_steps": "round.evaluate-every",
    "eval_strategy": "round.evaluate-every",
    "fraction-train": "round.holders",
    "fraction_fit": "round.holders",
    "min_train_nodes": "round.min-holders",
    "min_available_nodes": "round.min-holders",
    "strategy": "aggregate.method",
    "r": "lora.rank",
    "lora.r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora.target_modules": "lora.targets",
    "target_modules": "lora.targets",
    "layers_to_transform": "lora.layers",
    "privacy.max_grad_norm": "privacy.clip",
    "target_epsilon": "privacy.epsilon",
    "target_delta": "privacy.delta",
    "sample_rate": "train.rate",
    "model_name_or_path": "model.name",
    "torch_dtype": "model.dtype",
    "dataset_text_field": "data.text",
    "max_seq_length": "train.max-length",
    "max_new_tokens": "task.target-length",
    "output_dir": "run.out",
    "resume_from_checkpoint": "run.resume",
    "seed": "run.seed",
    "epsilon": "privacy.epsilon",
    "privacy.lr": "train.lr",
    # and slips of the pen in both
    "learning_rat": "train.lr",
    "privacy.max_grad_nrm": "privacy.clip",
    "train.max_len": "train.max-length",
}
# A name that means something near, and what the message says of the difference.
DIFFERENT = {
    "layers_to_transform": "counts them from the top and 0 is all",
    "num_train_epochs": "round.count x train.steps",
    "fraction-train": "is a share, ours is a number",
    "warmup_steps": "ours counts rounds",
    "max_steps": "of each round",
    "secure_mode": "always on",
    "poisson_sampling": "always on",
}


def settings(*arguments: str) -> str:
    app = typer.Typer()
    add_commands(app)
    done = CliRunner().invoke(app, ["settings", *arguments], env={"COLUMNS": str(COLUMNS)})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_names_lead_to_ours(name: str) -> None:
    assert f"'{USUAL[name]}'" in hint(name)


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_name_that_means_something_near_says_what_differs(name: str) -> None:
    assert DIFFERENT[name] in hint(name)


@pytest.mark.parametrize("name", ["zzz", "", "privacy", "x" * 5000, "é.ü"])
def test_no_answer_is_a_list_of_all_settings(name: str) -> None:
    assert hint(name) == "`confide settings` lists all."


def told(folder: Path, place: str, key: str) -> str:
    """The refusal of a setting by that key, written in that place."""
    scenario = f'"{key}" = 1\n[federation]\nsource = "nyt"\n'
    (folder / "mine.toml").write_text(scenario, "utf-8")
    tiny.write_jsonl(folder / "text.jsonl", tiny.rows(4, seed=0))
    described = {"task": "text-generation", "data": {"train": "text.jsonl", "val": "text.jsonl"}}
    (folder / "mine.json").write_text(json.dumps(described | {"config": {key: 1}}), "utf-8")
    calls = {
        "--set": lambda: run_config(load_scenario("nyt"), [f"{key}=1"]),
        "run config": lambda: from_flat({**GOOD, key: 1}),
        "scenario": lambda: load_scenario(str(folder / "mine.toml")),
        "description": lambda: load_scenario(str(folder / "mine.json")),
        "--space": lambda: parse_space([f"{key}=1..2"], load_scenario("nyt")),
    }
    with pytest.raises(ConfideError) as caught:
        calls[place]()
    return str(caught.value)


PLACES = ("--set", "run config", "scenario", "description", "--space")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", ["train.learning_rate", "privacy.max_grad_norm", "lora.r"])
def test_every_place_for_a_setting_knows_the_usual_names(
    tmp_path: Path, place: str, key: str
) -> None:
    message = told(tmp_path, place, key)
    assert key in message
    assert f"'{USUAL.get(key, '')}'" in message


@pytest.mark.parametrize("place", PLACES)
def test_no_place_lists_all_settings(tmp_path: Path, place: str) -> None:
    assert sum(key in told(tmp_path, place, "qqqq") for key in known_keys()) == 0


def test_underscores_stand_for_dashes(tmp_path: Path) -> None:
    """``train.max_length``: parsers of Hugging Face take both, and nothing else can be meant."""
    assert [key for key in known_keys() if spelled(key.replace("-", "_")) != key] == []
    assert from_flat({**GOOD, "train.max_length": 16}).train.max_length == 16
    assert run_config(load_scenario("nyt"), ["round.min_holders=3"])["round.min-holders"] == 3
    path = tmp_path / "mine.toml"
    path.write_text("train.max_length = 16\n", "utf-8")
    assert load_scenario(str(path)).config == {"train.max-length": 16}
    assert parse_space(["task.target_length=8..16"], load_scenario("nyt"))[0].key == (
        "task.target-length"
    )
    path.write_text("train.max_length = 16\ntrain.max-length = 32\n", "utf-8")
    with pytest.raises(ConfideError, match=r"train\.max-length twice"):
        load_scenario(str(path))
    with pytest.raises(ConfideError, match="set twice"):
        from_flat({**GOOD, "train.max_length": 16, "train.max-length": 32})


@pytest.mark.parametrize("zero", [0, 0.0])
def test_no_noise_is_never_asked_for_by_a_zero_that_means_calibrate(zero: float) -> None:
    """Opacus's 0 is no noise. Here the default is the word ``auto``, and a 0 is refused wherever it
    comes from."""
    key = "privacy.noise-multiplier"
    assert run_config(load_scenario("nyt"))[key] == rules()[key].default == "auto"
    assert from_flat({**GOOD, key: "auto"}) == from_flat(GOOD)
    assert run_config(load_scenario("nyt"), [f"{key}=2"])[key] == 2
    with pytest.raises(ConfideError) as caught:
        from_flat(run_config(load_scenario("nyt"), [f"{key}={zero}"]))
    assert caught.value.code == "settings.range"
    assert "'auto'" in caught.value.hint
    assert "privacy.trust = 'off'" in caught.value.hint


def test_alpha_may_be_a_fraction_as_in_peft(tiny_model: Path, tmp_path: Path) -> None:
    from confide.common.adapter.schema import save_adapter
    from confide.common.models.loading import load_model

    flat = tiny.config(tiny_model, tmp_path, tmp_path)
    for alpha, written in ((2.5, 2.5), (5, 5)):
        loaded = load_model(from_flat({**flat, "lora.alpha": alpha, "lora.rank": 2}))
        scales = [
            m.scaling["default"]
            for m in loaded.model.modules()
            if isinstance(getattr(m, "scaling", None), dict)
        ]
        assert set(scales) == {alpha / 2}
        save_adapter(loaded.model, tmp_path / "a", "m")
        found = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_alpha"]
        assert (found, type(found)) == (written, type(written))


# --- confide settings ---


def test_every_setting_is_listed_with_all_that_there_is_to_know() -> None:
    listed = settings()
    listing = json.loads(settings("--json"))
    assert [row["key"] for row in listing] == known_keys()
    assert all(row["means"] and row["type"] for row in listing)
    assert [key for key in known_keys() if f"{key} = " not in listed] == []
    assert max(len(line) for line in listed.splitlines()) <= COLUMNS
    names = {name["name"] for row in listing for name in row["names"]}
    assert {"learning_rate", "max_grad_norm", "num-server-rounds", "target_modules"} <= names
    assert {n["library"] for row in listing for n in row["names"]} >= {
        "HF", "PEFT", "Opacus", "Flower",
    }  # fmt: skip
    assert [key for key, rule in rules().items() if rule.names and not rule.usual] == []


@pytest.mark.parametrize("name", ["train.lr", "learning_rate", "train.learning-rate", "lr"])
def test_one_setting_is_shown_by_any_name(name: str) -> None:
    shown = settings(name)
    assert shown.startswith("train.lr = 0.1\n")
    assert "A number in (0, 10,000]" in shown
    assert "HF learning_rate" in shown
    assert shown.count(" = ") == 1


def test_a_room_is_shown_and_what_is_no_setting_refused() -> None:
    assert {row["key"].partition(".")[0] for row in json.loads(settings("wire", "--json"))} == {
        "wire"
    }
    assert "Note: Flower calls it fraction-train; it is a share" in settings("fraction-train")
    with pytest.raises(ConfideError, match=r"settings\.unknown-key.*always on"):
        settings("secure_mode")


def test_the_schema_has_every_setting_and_its_bounds() -> None:
    rooms = json.loads(settings("--schema"))["properties"]
    keys = [f"{room}.{name}" for room, table in rooms.items() for name in table["properties"]]
    assert keys == known_keys()
    assert rooms["privacy"]["properties"]["epsilon"]["exclusiveMinimum"] == 0
    assert rooms["privacy"]["properties"]["noise-multiplier"]["anyOf"][0] == {"const": "auto"}
    assert rooms["lora"]["properties"]["rank"]["maximum"] == 256


def test_a_name_finds_each_setting_once() -> None:
    assert [rule.key for rule, _ in found("learning_rate", list(rules().values()))] == ["train.lr"]
