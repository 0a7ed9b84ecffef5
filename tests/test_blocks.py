"""Every block of every page is tried, offline (FAULTS F19): here stands which way each goes.

``run``: it runs as it stands, in the test that is named. ``python``: it runs as it stands, after
the blocks of its page before it, on a small model under the name of the real one. ``parsed``: it
needs a deployment, hours or root, so its commands, options, arguments and settings go through the
real parsers. ``scenario`` and ``description``: read by the real reader, and what is described is
run on a small model. ``adapter``: it runs on an adapter that was just made. ``extension``: a module
that tests/common/methods/test_extension.py takes from the page and runs. ``shown``: a picture or an
output. A block that is not listed fails; so does a command in the prose that the command line does
not have.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import confide
from confide.__main__ import build_app
from confide.common.settings import from_flat
from confide.simulations.assets_cli import _wanted
from confide.simulations.ready import check_text
from confide.simulations.scenario import changed, load_scenario, prepare, run_config
from tests import tiny
from tests.conftest import ROOT

PAGE = "tests/deployment/test_deploy_page.py"
DAYS = "tests/deployment/test_administrator_page.py"
README = "tests/test_readme.py"
# By page, in the order of the page: the language of a block, and the way it goes.
BLOCKS: dict[str, list[tuple[str, str]]] = {
    "README.md": [
        ("sh", "parsed"),
        ("text", "shown"),
        ("python", "python"),
        ("sh", "parsed"),
        ("sh", f"run by {README}"),
        ("sh", "parsed"),
    ],
    "docs/aggregation.md": [("python", "extension")],
    "docs/administrator.md": [("console", f"run by {DAYS}")] * 13,
    "docs/deploy.md": [
        ("text", "shown"),
        *[("console", f"run by {PAGE}")] * 3,
        ("sh", "parsed"),
        *[("console", f"run by {PAGE}")] * 5,
        ("sh", "parsed"),
        ("console", f"run by {PAGE}"),
        ("sh", "parsed"),
    ],
    "docs/flower.md": [("sh", "parsed")],
    "docs/how-it-works.md": [
        ("text", "shown"),
        ("text", "shown"),
        ("toml", "scenario"),
        ("json", "description"),
    ],
    "docs/secure-sum.md": [("text", "shown")],
    "docs/python.md": [*[("python", "python")] * 6, ("python", "adapter")],
}
FENCE = re.compile(r"^ *```(\S*)[^\n]*\n(.*?)^ *```\s*$", re.DOTALL | re.MULTILINE)
PROSE = re.compile(r"`(confide [^`]+)`")
# What the reader of a page has.
OWN = {"HOST": "fleet.example.org", "PORT": "8443", "SCENARIO": "nyt", "VENV": "/opt/confide"}
# Programs that are not ours: what they do is not looked at, but they are known.
OTHERS = {
    "python3", "pip", "sleep", "true", "useradd", "install", "chmod", "chown", "mkdir", "mv", "cp",
    "docker", "bash", "rm", "sed",
}  # fmt: skip
WORDS = {"do", "done", "until", "while", "if", "then", "fi", "export"}


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str
    way: str


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks() -> list[Block]:
    """Every block, with its way; empty where none is listed."""
    found = []
    for path in pages():
        page = str(path.relative_to(ROOT))
        listed = BLOCKS.get(page, [])
        for place, fence in enumerate(FENCE.finditer(path.read_text(encoding="utf-8"))):
            language, way = listed[place] if place < len(listed) else ("", "")
            found.append(Block(page, fence[1], fence[2], way if language == fence[1] else ""))
    return found


def going(*ways: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{block.page}: {block.text[:40].splitlines()[0]}")
        for block in blocks()
        if block.way.split(" ")[0] in ways
    ]


def test_every_block_is_listed_with_the_way_it_goes() -> None:
    assert [f"{b.page}: {b.text[:60]}" for b in blocks() if not b.way] == []
    assert len(blocks()) == sum(map(len, BLOCKS.values()))
    ways = {way.split(" ")[0] for listed in BLOCKS.values() for _, way in listed}
    assert ways <= {"run", "python", "parsed", "shown", "scenario", "description", "adapter",
                    "extension"}  # fmt: skip
    # Only what nobody could type is shown and no more.
    shown = [b for b in blocks() if b.way == "shown"]
    assert [b.text for b in shown if b.language != "text" or "$ " in b.text] == []


def test_what_runs_as_it_stands_does_so_in_the_test_that_is_named() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    here = [b for b in blocks() if b.way == f"run by {README}"]
    assert len(here) == readme.count("<!-- test -->\n```sh")
    assert all(f"<!-- test -->\n```sh\n{b.text}" in readme for b in here)
    ways = {f"run by {PAGE}", f"run by {DAYS}"}
    assert {b.language for b in blocks() if b.way in ways} == {"console"}
    assert {b.way for b in blocks() if b.language == "console"} == ways


# --- Python ---


def small_cache(folder: Path, real: Path) -> Path:
    """A cache with the real text, and a small random model under the name of the demo's."""
    from transformers import BertConfig, BertModel

    cache = folder / "cache"
    model = cache / "models" / str(run_config(load_scenario("nyt"))["model.name"])
    tiny.save_model(model)
    longer = BertConfig.from_pretrained(model, max_position_embeddings=128)
    BertModel(longer).save_pretrained(model)
    (cache / "text").symlink_to(real / "text")
    return cache


@pytest.fixture
def fresh_models() -> Iterator[None]:
    """The model that a name stands for here is not the one of the next test."""
    from confide.common.models import loading

    loading._load.cache_clear()
    yield
    loading._load.cache_clear()


@pytest.mark.usefixtures("fresh_models")
@pytest.mark.parametrize("page", sorted({b.page for b in blocks() if b.way == "python"}))
def test_the_python_of_a_page_runs_in_its_order(
    page: str, tmp_path: Path, real_cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(small_cache(tmp_path, real_cache_dir)))
    monkeypatch.chdir(tmp_path)
    # PEFT 0.21 asks transformers 5 for a flag by its old name, once per model.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    names: dict[str, Any] = {}
    for block in blocks():
        if (block.page, block.way) == (page, "python"):
            exec(compile(block.text, page, "exec"), names)  # noqa: S102 - our own page
    assert names["run"].status == "finished"
    assert list((tmp_path / "runs").iterdir())


def test_the_page_for_python_has_a_row_for_every_public_name() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)", page, re.MULTILINE)
    assert sorted(rows) == sorted(confide.__all__)


# --- commands through the real parsers ---


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a piece of shell, words and separators taken away."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)^\$ ", "", text))
    for line in joined.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        command: list[str] = []
        for token in [*lexer, ";"]:
            if set(token) <= set(";&|()"):
                yield from [command] if command else []
                command = []
            elif command or not (token in WORDS or re.match(r"[A-Za-z_]+=", token)):
                command.append(expanded(token))


def expanded(token: str) -> str:
    for name, value in OWN.items():
        token = re.sub(rf"\$\{{?{name}\}}?", value, token)
    return token


def parse(command: click.Command, name: str, words: Sequence[str], parent: Any = None) -> None:
    """As the command line reads it, with every option and argument, and nothing is run."""
    context = command.make_context(name, list(words), parent=parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        found, inner, more = command.resolve_command(context, rest)
        assert inner is not None
        parse(inner, str(found), more, context)
        return
    check_values(context)


def check_values(context: click.Context) -> None:
    """Scenarios, settings and spaces that are named."""
    given, what = context.params, context.command_path
    for change in given.get("changes") or ():
        changed([change])
    name = given.get("scenario") or (given.get("what") if "server run" in what else None)
    if name and not str(name).endswith((".toml", ".json")) and str(name) != "SCENARIO":
        run_config(load_scenario(str(name)), given.get("changes") or ())
    if given.get("space"):
        from confide.simulations.space import parse_space

        parse_space(given["space"], load_scenario(str(name)))


@pytest.mark.parametrize("block", going("parsed", "run"))
def test_the_commands_of_a_block_are_ones_that_there_are(block: Block) -> None:
    found = list(commands(block.text))
    assert found
    for command in found:
        check_command(command)


def check_command(command: list[str]) -> None:
    first = Path(command[0]).name
    if first == "confide":
        parse_confide(command[1:])
    elif first == "flwr":
        with warnings.catch_warnings():  # of flwr's own options
            warnings.simplefilter("ignore", DeprecationWarning)
            from flwr.cli.app import app

            parse(typer.main.get_command(app), "flwr", command[1:])
    elif first == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"(?m)^{target}:", makefile) for target in command[1:])
    elif first == "for":
        return
    else:
        assert first in OTHERS, command
        check_files_and_inner(command)


def check_files_and_inner(command: list[str]) -> None:
    """Files of ours that another program is given, and what it runs of ours inside."""
    named = [word for word in command if word.startswith("deploy/")]
    assert [name for name in named if not (ROOT / name).is_file()] == []
    for word in command:
        if word.startswith("confide "):
            parse_confide(word.split()[1:])
    if "coordinator" in command[:-1] and "exec" in command:
        parse_confide(command[command.index("confide") + 1 :])


def parse_confide(words: list[str]) -> None:
    if words != ["--version"]:
        parse(typer.main.get_command(build_app()), "confide", words)


def test_a_stale_command_is_found() -> None:
    for stale in ("confide simulat nyt", "confide doctor nyt --sett a=b"):
        with pytest.raises(click.UsageError):
            check_command(stale.split())
    with pytest.raises(Exception, match="learning"):
        check_command(["confide", "simulate", "nyt", "--set", "train.learning=1"])
    with pytest.raises(AssertionError):
        check_command(["make", "nothing"])


def in_prose() -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), " ".join(one.split()))
        for path in pages()
        for one in PROSE.findall(FENCE.sub("", path.read_text(encoding="utf-8")))
    ]


def test_every_command_in_the_prose_is_one_that_there_is() -> None:
    """By its name and its options; arguments stand there as words to be replaced."""
    assert len(in_prose()) > 60
    app = typer.main.get_command(build_app())
    wrong = [(page, said) for page, said in in_prose() if not known(app, said)]
    assert wrong == []


def known(command: click.Command, said: str) -> bool:
    words = said.split()[1:]
    while words and isinstance(command, click.Group):
        if words[0].startswith("-"):
            break
        each = [command.commands.get(name) for name in words[0].split("|")]
        if None in each:
            return False
        command, words = each[0] or command, words[1:]
    has = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    options = {
        word.partition("=")[0].strip("[]") for word in words if word.startswith(("--", "[--"))
    }
    return options <= has | {"--help", "--version"}


# --- files through the real readers ---


@pytest.mark.parametrize("block", going("scenario"))
def test_a_scenario_of_a_page_is_a_valid_run(block: Block, tmp_path: Path) -> None:
    """FAULTS F27: a scenario of one's own, as a page shows it."""
    (tmp_path / "mine.toml").write_text(block.text, encoding="utf-8")
    scenario = load_scenario(str(tmp_path / "mine.toml"))
    assert from_flat(run_config(scenario)).run.name == "mine"
    assert _wanted([str(tmp_path / "mine.toml")])[0], "its model and text can be fetched"


@pytest.mark.parametrize("block", going("description"))
def test_a_description_of_a_page_runs_word_for_word(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F19: ``{"task": "text-generation", ...}`` named a model that no asset makes. The model
    here is a small one under the name that the description leads to."""
    from confide.server.run import run
    from confide.simulations.inprocess import federation

    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.json"
    file.write_text(block.text, encoding="utf-8")
    for number, name in enumerate(json.loads(block.text)["data"].values()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        lines = [row["text"] for row in tiny.rows(12, seed=number)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    scenario = load_scenario("mine.json")
    (asset,) = _wanted(["mine.json"])[0]
    path = tiny.save_task_model(asset.folder, "causal") / "config.json"
    longer = json.loads(path.read_text("utf-8")) | {"max_position_embeddings": 256}
    path.write_text(json.dumps(longer), "utf-8")
    config = run_config(scenario, ["round.count=2"])
    data = check_text(prepare(scenario), from_flat(run_config(scenario)))
    members = federation(sorted(data.glob("holder-*.jsonl")), tmp_path / "ledgers")
    folder = run({**config, "run.out": str(tmp_path / "runs")}, members)
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    assert 0 < report["claim"]["epsilon"] <= 8


@pytest.mark.parametrize("block", going("adapter"))
def test_the_code_that_loads_an_adapter_runs(
    block: Block, tmp_path: Path, real_cache: Path
) -> None:
    """As it stands, but for the two places that its reader fills in."""
    from confide.common.adapter.schema import save_adapter
    from confide.common.models.loading import load_model

    name = str(run_config(load_scenario("nyt"))["model.name"])
    loaded = load_model(from_flat(run_config(load_scenario("nyt"))))
    save_adapter(loaded.model, tmp_path / "adapter", name)
    assert name in block.text
    code = block.text.replace(name, str(real_cache / "models" / name))
    code = code.replace("runs/.../adapter", str(tmp_path / "adapter"))
    made: dict[str, Any] = {}
    # PEFT 0.21 asks transformers 5 for a flag by its old name, once per model.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    exec(compile(code, block.page, "exec"), made)  # noqa: S102 - our own page
    assert made["logits"].shape == (1, 2)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
