"""The app that a run sends to the holders: names, settings, and not one line of code.

Flower ships an app bundle to every node. Ours names ``confide.client.app`` and
``confide.server.app``, which each side has installed itself, so that what a holder runs is what it
installed. The bundle is the same for every run: a run's own values travel as its run config. A
holder pins its SHA-256; it changes when confide's settings do, and then holders pin the new one.
"""

from __future__ import annotations

import hashlib
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w

from ... import __version__
from ...common.errors import ConfideError
from ...common.machine.paths import write_public
from ...common.settings import Settings
from ..run_folder import by_room
from . import flower
from .federation import Federation


def _app() -> dict[str, Any]:
    return {
        "project": {
            "name": "confide-federation",
            "version": __version__,
            "description": "Names the confide that each side has installed; contains no code",
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "confide",
                    "fab-format-version": 0,
                    "components": {
                        "serverapp": "confide.server.app:app",
                        "clientapp": "confide.client.app:app",
                    },
                    "config": by_room(Settings().to_flat()),
                }
            }
        },
    }


def write_app(folder: Path) -> None:
    """Write the app's folder; Flower takes an override only for a key that stands there."""
    write_public(folder / "pyproject.toml", tomli_w.dumps(_app()).encode())
    write_public(folder / "README.md", b"The app of a confide federation: no code.\n")


def bundle_hash(federation: Federation) -> str:
    """SHA-256 of the bundle that ``flwr run`` would send now."""
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        return hashlib.sha256(flower.build(federation, Path(scratch))).hexdigest()


def check_bundle(federation: Federation, keys: Iterable[str]) -> None:
    """Refuse to start what the holders have not pinned, before they do.

    Raises:
        ConfideError: ``provision.bundle``.
    """
    with (federation.app / "pyproject.toml").open("rb") as file:
        rooms = tomllib.load(file)["tool"]["flwr"]["app"]["config"]
    known = {f"{room}.{key}" for room, values in rooms.items() for key in values}
    missing = sorted(set(keys) - known)
    if missing:
        raise ConfideError(
            "provision.bundle",
            f"The federation's bundle does not know {missing[0]}: it is of another confide.",
            f"`confide server provision {federation.folder} --renew bundle` makes a new one, whose"
            " hash every holder adds to its kit.",
        )
    found = bundle_hash(federation)
    if found != federation.bundle:
        raise ConfideError(
            "provision.bundle",
            f"The bundle is {found[:16]}..., but the holders have pinned"
            f" {federation.bundle[:16]}...; they would refuse it.",
            f"Restore {federation.app}, or make a new one with `--renew bundle`.",
        )
