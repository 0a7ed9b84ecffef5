"""A kit is read strictly: it came from somebody else, and a private key lies in it."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest

from confide.common.errors import ConfideError
from confide.common.machine.kit import Kit, check_current, read_file, read_kit

DIGEST = "a" * 64
GOOD = {
    "schema": '"confide-kit/1"',
    "name": '"ward-7"',
    "coordinator": '"fl.example.org"',
    "fleet": '"fl.example.org:443"',
    "bundles": f'["{DIGEST}"]',
    "expires": '"2027-11-26"',
}


def written(folder: Path, **changes: str | None) -> Path:
    values = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (folder / "kit.toml").write_text("".join(f"{k} = {v}\n" for k, v in values.items()))
    (folder / "ca.crt").write_text("a certificate")
    (folder / "node.key").write_text("a key")
    (folder / "node.key").chmod(0o600)
    return folder


def code_of(folder: Path) -> str:
    with pytest.raises(ConfideError) as caught:
        read_kit(folder)
    assert caught.value.hint or caught.value.code == "kit.format"
    return caught.value.code


def test_a_kit_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_kit(written(tmp_path)) == Kit(
        folder=tmp_path,
        name="ward-7",
        coordinator="fl.example.org",
        fleet="fl.example.org:443",
        bundles=(DIGEST,),
        expires=date(2027, 11, 26),
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", None),
        ("schema", '"confide-kit/2"'),
        ("name", '"../other"'),
        ("name", '""'),
        ("name", "7"),
        ("coordinator", '"a b"'),
        ("fleet", '"fl.example.org"'),
        ("fleet", '"fl.example.org:0"'),
        ("fleet", '"fl.example.org:65536"'),
        ("fleet", '"https://fl.example.org:443"'),
        ("bundles", '"all"'),
        ("bundles", '["abc"]'),
        ("bundles", f'["{"A" * 64}"]'),
        ("bundles", "[" + f'"{DIGEST}",' * 65 + "]"),
        ("expires", '"soon"'),
        ("expires", None),
    ],
)
def test_a_value_that_is_not_what_it_must_be_is_refused(
    tmp_path: Path, key: str, value: str | None
) -> None:
    assert code_of(written(tmp_path, **{key: value})) == "kit.format"


def test_an_unknown_key_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match="bundle'") as caught:
        read_kit(written(tmp_path, bundle="[]"))
    assert (caught.value.code, caught.value.hint) == ("kit.unknown-key", "Did you mean 'bundles'?")


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"schema = ", b"# " + b"x" * 70_000, b"a=" + b"[" * 5000]
)
def test_what_is_not_toml_is_refused(tmp_path: Path, raw: bytes) -> None:
    (written(tmp_path) / "kit.toml").write_bytes(raw)
    assert code_of(tmp_path) == "kit.format"


@pytest.mark.parametrize("name", ["kit.toml", "ca.crt", "node.key"])
def test_a_file_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    (written(tmp_path) / name).unlink()
    assert code_of(tmp_path) == "kit.missing"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    (written(tmp_path) / "node.key").chmod(mode)
    assert code_of(tmp_path) == "kit.key-mode"


def test_a_kit_is_good_on_its_last_day_and_not_on_the_next(tmp_path: Path) -> None:
    kit = read_kit(written(tmp_path))
    check_current(kit, date(2027, 11, 26))
    with pytest.raises(ConfideError, match=r"until 2027-11-26") as caught:
        check_current(kit, date(2027, 11, 27))
    assert caught.value.code == "kit.expired"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could read for another")
def test_root_reads_no_file_of_anothers_out_of_a_kit(tmp_path: Path) -> None:
    """What root reads of a kit the gateway gets, which has the network."""
    secret = tmp_path / "secret"
    secret.write_text("text of a record")
    secret.chmod(0o600)
    kit = written(tmp_path)
    for path in (kit, kit / "kit.toml", kit / "node.key", kit / "ca.crt"):
        os.chown(path, 1, 1)
    assert read_file(kit / "ca.crt") == b"a certificate"
    (kit / "ca.crt").unlink()
    (kit / "ca.crt").symlink_to(secret)
    with pytest.raises(ConfideError) as caught:
        read_file(kit / "ca.crt")
    assert caught.value.code == "kit.owner"
    (kit / "ca.crt").unlink()
    (kit / "ca.crt").hardlink_to(secret)
    with pytest.raises(ConfideError, match="no file of the user"):
        read_file(kit / "ca.crt")
    (kit / "kit.toml").unlink()
    os.mkfifo(kit / "kit.toml")
    assert code_of(kit) == "kit.owner"
    os.chown(kit, 0, 0)
    assert read_file(kit / "ca.crt") == b"text of a record", "root's folder is root's own word"
