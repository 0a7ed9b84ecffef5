r"""What of confide is installed here: its SHA-256, by which a ledger's charges say what trained,
and the libraries that each of its extras brings.

The SHA-256 is that of a list, a line for each .py file of the five rooms in the order of their
names, as ``sha256sum`` writes it; so it is the same in a checkout and in an install, and whoever
has the package can make it without us. In the folder ``confide`` of an install:

    find . -name '*.py' -printf '%P\n' | LC_ALL=C sort | xargs sha256sum | sha256sum

It names the code and proves nothing: other code could say the same. The libraries below are not in
it; their versions stand in ``constraints.txt``.

Core confide is what a holder installs. Whatever else a command needs is imported by ``library``
when it is used, so that one that is missing is told with the name of its extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfideError, missing_extra

# By the name that Python imports: the name that people know, and the extra of pyproject.toml.
EXTRAS: Mapping[str, tuple[str, str]] = {
    "captum": ("Captum", "explain"),
    "datasets": ("datasets", "simulation"),
    "flwr_datasets": ("flwr-datasets", "simulation"),
    "gguf": ("gguf", "simulation"),
    "nltk": ("NLTK", "coordinator"),
    "optuna": ("Optuna", "tune"),
    "pyarrow": ("PyArrow, which reads Parquet,", "parquet"),
    "ray": ("Ray", "simulation"),
    "sacrebleu": ("sacrebleu", "coordinator"),
    "sklearn": ("scikit-learn", "coordinator"),
}


def library(module: str) -> Any:
    """The module of that name, whose first part is in ``EXTRAS``.

    Raises:
        ConfideError: ``extra.missing``.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise  # one that the library itself asks for
    raise missing_extra(*EXTRAS[package])


def need(package: str) -> None:
    """Refuse to go on without a package of ``EXTRAS``; imports nothing.

    Raises:
        ConfideError: ``extra.missing``.
    """
    if find_spec(package) is None:
        raise missing_extra(*EXTRAS[package])


_DOOR = "confide"
_ROOMS = ("client", "common", "server", "simulations")


@lru_cache(maxsize=1)
def code_hash() -> str:
    """64 hexadecimal digits; of the files as they are when a process first asks.

    Raises:
        ConfideError: ``code.unreadable`` where the package does not lie in files.
    """
    files = {path.name: path for path in _folder(_DOOR).glob("*.py")}
    for room in _ROOMS:
        if find_spec(f"{_DOOR}.{room}") is None:  # a part that is not installed here
            continue
        folder = _folder(f"{_DOOR}.{room}")
        files |= {f"{room}/{p.relative_to(folder).as_posix()}": p for p in folder.rglob("*.py")}
    return listed_hash(files)


def listed_hash(files: dict[str, Path]) -> str:
    """The SHA-256 of the list of these files, by the names under which they stand in it.

    Raises:
        ConfideError: ``code.unreadable``.
    """
    try:
        sums = {name: sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    except OSError as error:
        raise _unreadable(error.strerror or "") from None
    lines = (f"{sums[name]}  {name}\n" for name in sorted(sums, key=str.encode))
    return sha256("".join(lines).encode()).hexdigest()


def _folder(package: str) -> Path:
    found = find_spec(package)
    places = found.submodule_search_locations if found else None
    folder = Path(next(iter(places), "")) if places else Path()
    if not (folder / "__init__.py").is_file():
        raise _unreadable(f"{package} does not lie in a folder")
    return folder


def _unreadable(why: str) -> ConfideError:
    return ConfideError(
        "code.unreadable",
        f"The files of the installed confide cannot be read: {why}.",
        "Install it with pip, into a folder that this user can read.",
    )
