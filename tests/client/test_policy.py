"""The holder's limits: read from TOML, never adjusted, and no model that it did not mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from confide.client.policy import Policy, load_policy, review
from confide.common.errors import ConfideError
from confide.common.settings import Settings, from_flat

HUB_ID = "someone/small-model"


def settings(**changes: Any) -> Settings:
    flat = {"model.name": HUB_ID, "task.labels": "a,b", "privacy.delta": 1e-5}
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
    return from_flat(flat | named)


def refused(policy: Policy, **changes: Any) -> str:
    with pytest.raises(ConfideError) as caught:
        review(settings(**changes), policy)
    return caught.value.code


def allowed(policy: Policy, **changes: Any) -> bool:
    try:
        review(settings(**changes), policy)
    except ConfideError:
        return False
    return True


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model, and a working folder beside it."""
    models = tmp_path / "cache" / "models"
    (models / HUB_ID).mkdir(parents=True)
    (models / "plain").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    return models


def test_a_policy_is_read_and_the_rest_are_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, 'max-epsilon = 3\nbase-models = ["a/b"]\nallow-unprotected = false\n')
    assert load_policy(path) == Policy(max_epsilon=3, base_models=("a/b",))
    assert load_policy(write(tmp_path, "")) == Policy()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max-epsilon = ", "policy.format"),
        ("max-epsilon = 'three'", "policy.format"),
        ("max-epsilon = true", "policy.format"),
        ("max-epsilon = -1", "policy.format"),
        ("max-epsilon = nan", "policy.format"),
        ("allow-unprotected = 1", "policy.format"),
        ("base-models = 'a/b'", "policy.format"),
        ("base-models = [1]", "policy.format"),
        ("units = 'person'", "policy.format"),
        ("units = ['persons']", "policy.format"),
        ("person = ['author']", "policy.format"),
        ("max-epsilonn = 3", "policy.unknown-key"),
        ("max_epsilon = 3", "policy.unknown-key"),
    ],
)
def test_a_policy_that_is_wrong_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfideError) as caught:
        load_policy(write(tmp_path, text))
    assert caught.value.code == expected


def test_a_misspelt_limit_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ConfideError) as caught:
        load_policy(write(tmp_path, "max-epsilonn = 3"))
    assert "max-epsilon" in caught.value.hint


def test_a_policy_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(ConfideError, match=r"policy\.missing"):
            load_policy(path)
    binary = tmp_path / "policy.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfideError, match=r"policy\.format"):
        load_policy(binary)


def test_a_run_without_noise_needs_permission(cache: Path) -> None:
    assert refused(Policy(), privacy__trust="off") == "policy.unprotected"
    review(settings(privacy__trust="off"), Policy(allow_unprotected=True))


@pytest.mark.parametrize(("delta", "fits"), [(1e-4, True), (1.0001e-4, False)])
def test_the_largest_delta_is_itself_allowed(cache: Path, delta: float, fits: bool) -> None:
    if fits:
        review(settings(privacy__delta=delta), Policy())
    else:
        assert refused(Policy(), privacy__delta=delta) == "policy.delta"


@pytest.mark.parametrize("unit", ["record", "person"])
def test_only_the_units_of_the_policy_are_allowed(cache: Path, unit: str) -> None:
    wanted = {"privacy__unit": unit, "data__person": "author"}
    review(settings(**wanted), Policy())
    review(settings(**wanted), Policy(units=(unit,)))
    for units in ((), tuple({"record", "person"} - {unit})):
        assert refused(Policy(units=units), **wanted) == "policy.unit"


def test_a_run_cannot_tell_persons_apart_by_another_column_than_the_holder(cache: Path) -> None:
    named = Policy(person="author")
    review(settings(privacy__unit="person", data__person="author"), named)
    assert refused(named, privacy__unit="person", data__person="line") == "policy.unit"
    review(settings(data__person="line"), named)


def test_the_units_of_a_file_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, 'units = ["person"]\nperson = "author"\n')
    assert load_policy(path) == Policy(units=("person",), person="author")


def test_only_listed_models_are_allowed_when_there_is_a_list(cache: Path) -> None:
    listed = Policy(base_models=("a/b", "/opt/models/own"))
    for name in ("a/b", "/opt/models/own"):
        review(settings(model__name=name), listed)
    for name in (HUB_ID, "a/B", "a/b/", "a", "/opt/models", "/opt/models/own/../other"):
        assert refused(listed, model__name=name) == "policy.base-model"
    assert refused(Policy(base_models=("a/b",), allow_unprotected=True)) == "policy.base-model"


@pytest.mark.parametrize("name", [HUB_ID, "plain"])
def test_without_a_list_the_models_in_the_cache_are_allowed(cache: Path, name: str) -> None:
    assert allowed(Policy(), model__name=name)


@pytest.mark.parametrize(
    "name",
    ["someone/not-here", "/etc", "~", "~root", ".", "..", "../models/plain", "plain/..", "plain/",
     "./plain", "someone", "someone/../plain", "a/b/c", "file:///etc", "plain\n", "pläin",
     "..\\etc", "plain\x00"],
)  # fmt: skip
def test_without_a_list_no_path_and_no_download_is_allowed(cache: Path, name: str) -> None:
    (cache / "a" / "b" / "c").mkdir(parents=True)
    if name == "someone":
        (cache / HUB_ID).rmdir()
        (cache / "someone").rmdir()
    assert refused(Policy(), model__name=name) == "policy.base-model"


def test_an_absolute_path_is_refused_even_into_the_cache(cache: Path) -> None:
    assert refused(Policy(), model__name=str(cache / "plain")) == "policy.base-model"


def test_a_folder_that_happens_to_lie_here_is_not_the_model_of_that_name(cache: Path) -> None:
    (Path.cwd() / HUB_ID).mkdir(parents=True)
    assert refused(Policy()) == "policy.base-model"


def test_a_simulation_may_name_any_model(cache: Path) -> None:
    simulated = Policy(max_epsilon=math.inf, max_delta=1.0, allow_unprotected=True)
    for name in ("/anywhere/model", "../model", "someone/remote"):
        assert allowed(simulated, model__name=name)
