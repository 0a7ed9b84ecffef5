"""Settings in a file: what a run, a search or `confide doctor` begins with.

There is one format. A TOML file has a table for each group of settings; ``[federation]`` says which
text a simulation has and how it is split among holders. Such files are: a scenario that comes with
confide, which is given by its name; the config.toml of a run, which repeats that run; and
pyproject.toml, with the demo's settings. JSON of the same content is read, too. A task description
(``description``) and the name of a benchmark (``glue/sst2``) are short forms of such files.

``from_flat`` checks the values when it makes settings of them; this module does not.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from ..common.errors import ConfideError, nearest
from ..common.machine.paths import local_or_cached
from ..common.settings import (
    COORDINATORS_OWN,
    FederationSpec,
    Scalar,
    Settings,
    hint,
    rules,
    spelled,
)
from ..common.text.benchmarks import BENCHMARKS, settled, spec
from ..common.text.benchmarks import KEY as BENCHMARK
from ..common.text.readers import read_records
from .copies import copy_name, on_screen, prepare_files
from .description import Files, is_description, of_files, read_description, small_model

_FOLDER = Path(__file__).parent / "scenarios"
_TABLE = "federation."
_HOLDERS = f"{_TABLE}holders"
_RECIPE = [key for key in COORDINATORS_OWN if key.startswith(_TABLE) and key != _HOLDERS]
_APP = "tool.flwr.app.config."  # where pyproject.toml has the demo's settings
_NAME, _PATH = "run.name", "data.path"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A name, and the flat settings that it chooses; all others have their defaults."""

    name: str
    config: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def text(self) -> FederationSpec:
        """The table ``[federation]``, defaults included."""
        keys = {f.name: f"{_TABLE}{f.name.replace('_', '-')}" for f in fields(FederationSpec)}
        given = {
            name: rules()[key].checked(self.config[key])
            for name, key in keys.items()
            if key in self.config
        }
        return FederationSpec(**given)

    @property
    def files(self) -> Files | None:
        """The user's own files to be split among holders; None if the text is a source's."""
        text = self.text
        if not text.train:
            return None
        places = {"train": Path(text.train), "val": Path(text.val)}
        return Files(**places, text=text.text, target=text.target, person=text.person)

    @property
    def federation(self) -> str:
        """The name of the prepared federation. It is scenario and number of holders, ``nyt-10``, if
        the text is split as in the scenario that comes with confide. Otherwise a digest of
        everything that decides the files is added. Empty if there is no text to prepare.

        Raises:
            ConfideError: ``data.missing-file`` if the user's own files are not there.
        """
        text = self.text
        if self.files is not None:
            return copy_name(self.name, self.files, text.holders, text.seed)
        if not text.source:
            return ""
        named = f"{self.name.replace('/', '-')}-{text.holders}"
        recipe = _recipe(self.config)
        if self.name in scenario_names() and recipe == _recipe(load_scenario(self.name).config):
            return named
        if self.name == _benchmarks_name(text.source) and list(recipe) == ["federation.source"]:
            return named
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        return f"{named}-{digest[:8]}"

    def with_(self, chosen: Mapping[str, Scalar]) -> Scenario:
        """This scenario with other settings."""
        return replace(self, config={**self.config, **chosen})

    def run_config(self) -> dict[str, Scalar]:
        """The overrides of the run config: ``config``, with its data path and name."""
        place = {_PATH: self.federation} if self.text.source or self.text.train else {}
        return {**place, _NAME: self.name, **self.config}


def _recipe(config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Everything that decides the files of a source's text, except the number of holders."""
    given = {key: config[key] for key in _RECIPE if key in config}
    return {key: value for key, value in given.items() if value != rules()[key].default}


def _benchmarks_name(source: str) -> str:
    return source.replace("/", "-") if source in BENCHMARKS else ""


@cache
def scenario_names() -> list[str]:
    """The scenarios that come with confide."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_scenario(name: str | Path, changes: Sequence[str] = ()) -> Scenario:
    """The scenario of that name, the settings in that file, or those of the run in that folder;
    with ``KEY=VALUE`` changes.

    Raises:
        ConfideError: ``scenario.unknown`` or ``scenario.format``; for a change what ``changed``
            raises.
    """
    return settled_text(_loaded(str(name)).with_(changed(changes)), Path(name))


def _loaded(name: str) -> Scenario:
    known = scenario_names()
    if name in BENCHMARKS:
        return _benchmark(name)
    path = _file_of(name)
    if path is None:
        raise ConfideError(
            "scenario.unknown",
            f"No scenario is called {name!r:.200}.",
            nearest(name, [*known, *BENCHMARKS]),
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfideError(
            "scenario.unknown",
            f"{path} cannot be read: {error.strerror}.",
            f"Give the path of a .toml file, or one of {', '.join(known)}.",
        ) from error
    except ValueError as error:
        _refuse(path, f"is not {path.suffix[1:].upper()}: {error}")
    if not isinstance(content, dict):
        _refuse(path, "is not a table of keys and values")
    return _scenario(path, content)


def _file_of(name: str) -> Path | None:
    if name.endswith((".toml", ".json")):
        return Path(name)
    if name in scenario_names():
        return _FOLDER / f"{name}.toml"
    config = Path(name) / "config.toml"
    return config if name and config.is_file() else None


def _benchmark(name: str) -> Scenario:
    """A benchmark without changes, with a small model of the kind that it needs."""
    return Scenario(
        name=name.replace("/", "-"),
        config={
            "federation.source": name,
            BENCHMARK: name,
            "model.name": small_model(spec(name).kind),
        },
    )


def _scenario(path: Path, content: dict[str, Any]) -> Scenario:
    if is_description(content):
        chosen = read_description(path, content, _config(path, content.get("config", {})))
    else:
        chosen = _config(path, content)
    for key in ("federation.folder", "federation.train", "federation.val"):
        if chosen.get(key):
            chosen[key] = str((path.parent / Path(str(chosen[key])).expanduser()).resolve())
    return Scenario(name=str(chosen.pop(_NAME, "") or path.stem), config=chosen)


def run_config(scenario: Scenario, changes: Sequence[str] = ()) -> dict[str, Scalar]:
    """The whole flat run config: defaults, then the scenario's values, then ``KEY=VALUE`` changes,
    then the settings that the benchmark decides.

    Raises:
        ConfideError: ``settings.unknown-key`` or ``settings.type`` for a change, and what
            ``settled`` raises for what was chosen here; values are checked by ``from_flat``.
    """
    defaults, chosen = Settings().to_flat(), scenario.with_(changed(changes)).run_config()
    return {**defaults, **chosen, **settled(chosen)}


def changed(changes: Sequence[str]) -> dict[str, Scalar]:
    """What ``KEY=VALUE`` changes set, by keys as they are spelled here.

    Raises:
        ConfideError: as ``run_config``.
    """
    found = {}
    for change in changes:
        written, equals, value = change.partition("=")
        key = spelled(written.strip())
        if not equals:
            raise ConfideError(
                "settings.unknown-key",
                f"--set {change!r} gives no value.",
                f"Write --set {key or 'KEY'}=VALUE, without spaces or in quotes.",
            )
        if key not in rules():
            raise ConfideError(
                "settings.unknown-key", f"--set {change!r:.100} changes no setting.", hint(key)
            )
        found[key] = rules()[key].parsed(value.strip())
    return found


def with_batch(
    config: Mapping[str, Scalar], scenario: Scenario, files: Sequence[Path]
) -> dict[str, Scalar]:
    """The run config with ``train.batch`` for the holders' files, if the scenario does not choose
    it: as many units as the largest holder uses in a step. A simulation's text is public, and so is
    its size."""
    if "train.batch" in scenario.config:
        return dict(config)
    by_person = config["privacy.unit"] == "person"
    column = str(config["data.person"]) if by_person else None
    sizes = []
    for file in files:
        records = read_records(file, text=str(config["data.text"]), target=None, person=column)
        sizes.append(len({r.person for r in records}) if by_person else len(records))
    most = math.ceil(float(config["train.rate"]) * max(sizes, default=1))
    return {**config, "train.batch": max(1, most)}


def prepare(scenario: Scenario, say: Callable[[str], None] = on_screen) -> Path:
    """Make or find the scenario's federation in the cache, and return its folder. If it is a copy
    of the user's own text, the user is told about it, a line at a time."""
    name, files, text = scenario.federation, scenario.files, scenario.text
    if files is not None:
        return prepare_files(name, files, text.holders, text.seed, say)
    from .partition import prepare_federation

    return prepare_federation(
        name,
        source=text.source,
        holders=text.holders,
        partition=text.partition,
        alpha=text.alpha,
        seed=text.seed,
        limit=text.limit or None,
        public_limit=text.public_limit or None,
        folder=Path(text.folder) if text.folder else None,
    )


def text_of(scenario: Scenario, settings: Settings) -> Path:
    """The folder with the text of a run: ``data.path`` if it was set to another one, else the
    scenario's, which is made if need be.

    Raises:
        ConfideError: ``data.missing-file``, and what ``prepare`` raises.
    """
    if settings.data.path and settings.data.path == scenario.federation:
        return prepare(scenario)
    folder = local_or_cached(settings.data.path, "federations") if settings.data.path else None
    if folder is None:
        raise ConfideError(
            "data.missing-file",
            f"data.path = {settings.data.path!r:.200} is neither a folder nor a prepared"
            " federation.",
            "Set federation.source, or federation.train and federation.val; or name a folder with"
            " public.jsonl.",
        )
    return folder


def holders_in(folder: Path) -> int:
    """How many holders a prepared federation has.

    Raises:
        ConfideError: ``data.partition`` if it has none.
    """
    count = len(list(folder.glob("holder-*.jsonl")))
    if not count:
        raise ConfideError(
            "data.partition",
            f"{folder} has no file holder-*.jsonl: there is nobody to simulate.",
            "Set federation.source, or federation.train and federation.val.",
        )
    return count


def settled_text(scenario: Scenario, path: Path) -> Scenario:
    """The scenario with the settings that its text decides: columns and classes of the user's own
    files, or the benchmark that is the source. ``path`` is its name in messages.

    Raises:
        ConfideError: as ``load_scenario``, and what ``description.of_files`` raises.
    """
    chosen = dict(scenario.config)
    if chosen.get("federation.train"):
        chosen = of_files(path, chosen)
    return scenario.with_({**chosen, **_of_benchmark(path, chosen)})


def _of_benchmark(path: Path, chosen: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Set the source from ``data.benchmark``, or the other way round; refuse two that differ."""
    source, named = str(chosen.get("federation.source", "")), str(chosen.get(BENCHMARK, ""))
    if (not named and source not in BENCHMARKS) or chosen.get("federation.train"):
        return {}
    name = spec(named or source).name
    if source not in ("", name):
        what = f"has federation.source = {source!r}, but {BENCHMARK} = {named!r}"
        _refuse(path, what, "Leave one out.")
    return {"federation.source": name, BENCHMARK: name}


def _config(path: Path, content: Any) -> dict[str, Scalar]:
    """The flat keys of the tables."""
    if not isinstance(content, dict):
        _refuse(path, f"has config = {content!r:.100}, which is not a table")
    config: dict[str, Scalar] = {}
    given = list(_flat(content))
    app = [(key.removeprefix(_APP), value) for key, value in given if key.startswith(_APP)]
    for written, value in app or given:
        key = spelled(written)
        if key not in rules():
            inner = f"{_TABLE}{written.replace('_', '-')}"
            told = f"Write it below [federation]: {inner}." if inner in rules() else hint(written)
            _refuse(path, f"sets {written!r:.100}, which is not a setting", told)
        if key in config:
            _refuse(path, f"sets {key} twice", "Leave one of the two out.")
        if not isinstance(value, (str, int, float, bool)):
            _refuse(path, f"sets {key} to a {type(value).__name__}", "Use text or a number.")
        config[key] = value
    return config


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys, whether they were written in quotes or as nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse(path: Path, what: str, hint: str = "Correct the file.") -> NoReturn:
    raise ConfideError("scenario.format", f"{path} {what}.", hint)
