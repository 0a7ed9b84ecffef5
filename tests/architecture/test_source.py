"""Habits of the source that neither ruff nor mypy checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from confide.common.methods import METHODS
from confide.common.tasks import TASKS

ROOM_NAMES = {"common", "client", "server", "simulations"}
UNSAFE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "torch.save", "numpy.load", "np.load"}


def parsed(root: Path, files: list[Path]) -> Iterator[tuple[Path, ast.Module]]:
    for file in files:
        yield file, ast.parse((root / file).read_text(encoding="utf-8"), str(file))


def nodes(root: Path, files: list[Path]) -> Iterator[tuple[str, ast.AST]]:
    for file, tree in parsed(root, files):
        for node in ast.walk(tree):
            yield f"{file}:{getattr(node, 'lineno', 0)}", node


def imported(node: ast.AST) -> list[str]:
    """Absolute module names that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module]
    return []


def only_passes(handler: ast.ExceptHandler) -> bool:
    return all(isinstance(step, ast.Pass) for step in handler.body)


def test_every_module_says_what_it_is_for(root: Path, product_files: list[Path]) -> None:
    mute = [
        str(file)
        for file, tree in parsed(root, product_files)
        if tree.body
        and not (ast.get_docstring(tree) or "").strip()
        # The empty __init__.py of a room may hold an empty docstring.
        and not (file.name == "__init__.py" and len(tree.body) == 1)
    ]
    assert mute == []


def test_no_room_is_imported_as_a_top_level_module(root: Path) -> None:
    everywhere = [
        file.relative_to(root)
        for folder in ("confide", *sorted(ROOM_NAMES), "tests")
        for file in sorted((root / folder).rglob("*.py"))
    ]
    found = [
        f"{place} imports {name}"
        for place, node in nodes(root, everywhere)
        for name in imported(node)
        if name.split(".")[0] in ROOM_NAMES
    ]
    assert found == []


def test_the_rooms_call_each_other_by_relative_names(root: Path, product_files: list[Path]) -> None:
    found = [
        f"{place} imports {name}"
        for place, node in nodes(root, product_files)
        for name in imported(node)
        if name.split(".")[0] == "confide"
    ]
    assert found == []


def test_no_product_code_draws_from_a_seed_that_is_called_insecure(
    root: Path, product_files: list[Path]
) -> None:
    found = [
        f"{place} uses {ast.unparse(node)}"
        for place, node in nodes(root, product_files)
        if isinstance(node, ast.Attribute) and node.attr.startswith("insecure_")
    ]
    assert found == []


def test_product_code_never_asserts(root: Path, product_files: list[Path]) -> None:
    assert [p for p, node in nodes(root, product_files) if isinstance(node, ast.Assert)] == []


def test_no_exception_is_swallowed(root: Path, product_files: list[Path]) -> None:
    swallowed = [
        place
        for place, node in nodes(root, product_files)
        if isinstance(node, ast.ExceptHandler) and (node.type is None or only_passes(node))
    ]
    assert swallowed == []


def test_nothing_is_ever_unpickled(root: Path, product_files: list[Path]) -> None:
    found = [
        f"{place} imports {name}"
        for place, node in nodes(root, product_files)
        for name in imported(node)
        if name.split(".")[0] in UNSAFE_MODULES
    ]
    found += [
        f"{place} calls {ast.unparse(node.func)}"
        for place, node in nodes(root, product_files)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS
    ]
    assert found == []


def test_toml_is_written_by_the_library_alone(root: Path, product_files: list[Path]) -> None:
    """yoetz#208: what JSON writes is no TOML for an emoji, a DEL, a large number."""
    by_hand = re.compile(r"= \{(json\.dumps\(|_?toml\()")
    assert [p for p in product_files if by_hand.search((root / p).read_text("utf-8"))] == []


# The other setting that has the word, the Hub's tag, and what a benchmark and a demo are run with.
NO_METHOD = {
    ("common/settings/specs.py", "lora"),
    ("server/card.py", "lora"),
    ("simulations/benchmarks/epoch.py", "lora"),
    ("simulations/benchmarks/utility.py", "lora"),
}


def test_only_the_modules_of_the_methods_spell_a_methods_name(
    root: Path, product_files: list[Path]
) -> None:
    """What differs between methods stands in ``common/methods``; everybody else asks the table."""
    found = {
        (str(file), value)
        for file, tree in parsed(root, product_files)
        if file.parts[:2] != ("common", "methods")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(value := node.value, str)
        and value in METHODS
    }
    assert found == NO_METHOD
    # Whoever decides by LoRA or not asks for the head.
    deciding = [
        place
        for place, node in nodes(root, product_files)
        if not place.startswith("common/methods") and isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value in METHODS
    ]
    assert deciding == []


# Where a kind of task may be named outside its own module, and why.
OF_KINDS = {
    "common/text/benchmarks.py": "a table of what others published: which kind each benchmark is",
}


def test_no_module_but_its_own_knows_a_task_by_its_name(
    root: Path, product_files: list[Path]
) -> None:
    """HOUSE finding 4: a new task broke in five places that tested the name of another."""
    files = [p for p in product_files if p.parts[:2] != ("common", "tasks")]
    files = [p for p in files if p.as_posix() not in OF_KINDS]
    named = re.compile(f"^({'|'.join(TASKS)})$|[\"'=]({'|'.join(TASKS)})[\"']")
    found = [
        f"{place} names {node.value!r:.80}"
        for place, node in nodes(root, files)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if named.search(node.value)
    ]
    assert found == []
    assert all(named.search((root / place).read_text("utf-8")) for place in OF_KINDS)
