"""The libraries that a holder does not need: which of confide's extras brings each.

Core confide is what a holder installs. Whatever else a command needs is imported by ``library``
when it is used, so that one that is missing is told with the name of its extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import missing_extra

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
