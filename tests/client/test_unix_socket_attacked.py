"""The resident's socket under attack: its own user, and the gateway's, try to have root give them a
file of root's."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confide.client.site.unix_socket import listen
from confide.client.site.users import become, user_named
from confide.common.errors import ConfideError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")

DAEMON, NOBODY = user_named("daemon"), user_named("nobody")
TRIES = 150  # before the mend one in some thirty was won


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of root's that every user can enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def secret(place: Path) -> Path:
    path = place / "secret"
    path.write_text("root's alone")
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def attacked(swap: Callable[[], None]) -> Iterator[None]:
    """While the body runs, a process of the resident's user does ``swap`` over and over."""
    child = os.fork()
    if child == 0:
        become(DAEMON)
        while True:
            with contextlib.suppress(OSError):
                swap()
    try:
        time.sleep(0.1)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def served(path: Path) -> str:
    """The code with which a resident's start is refused, or nothing."""
    try:
        listen(path, uid=DAEMON.uid, gid=NOBODY.gid).close()
    except ConfideError as error:
        return error.code
    return ""


def is_roots(secret: Path) -> bool:
    found = secret.stat()
    return (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)


def test_in_a_folder_of_the_residents_user_root_makes_no_socket(place: Path, secret: Path) -> None:
    folder = place / "own"
    folder.mkdir(mode=0o700)
    os.chown(folder, DAEMON.uid, DAEMON.gid)
    path = folder / "socket"

    def swap() -> None:
        """The socket that was just bound becomes a link to the secret."""
        path.unlink()
        path.symlink_to(secret)

    codes = set()
    with attacked(swap):
        for _ in range(TRIES):
            codes.add(served(path))
            assert is_roots(secret)
    assert codes == {"resident.socket"}


def test_a_folder_on_the_way_that_is_swapped_brings_root_nowhere_else(
    place: Path, secret: Path
) -> None:
    way = place / "open"
    way.mkdir()
    way.chmod(0o1777)
    path = way / "run" / "socket"
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()

    def swap() -> None:
        """The folder is made before root does, or is a link to another of root's."""
        (way / "run").symlink_to(elsewhere)
        (way / "run").unlink()
        (way / "run").mkdir()
        (path).symlink_to(secret)
        path.unlink()
        (way / "run").rmdir()

    with attacked(swap):
        for _ in range(TRIES):
            if served(path) == "":
                path.unlink()
                path.parent.rmdir()
            assert is_roots(secret)
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_becomes_a_link_while_it_is_looked_at_is_not_followed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, elsewhere = place / "open", place / "elsewhere"
    way.mkdir()
    way.chmod(0o1777)
    elsewhere.mkdir()
    look, path = Path.lstat, way / "run" / "socket"
    path.parent.mkdir()
    os.chown(path.parent, DAEMON.uid, DAEMON.gid)

    def swapped_after(self: Path) -> os.stat_result:
        found = look(self)
        if self == path.parent and stat.S_ISDIR(found.st_mode):  # the attacker is just as quick
            self.rmdir()
            self.symlink_to(elsewhere)
            os.chown(self, DAEMON.uid, DAEMON.gid, follow_symlinks=False)
        return found

    monkeypatch.setattr(Path, "lstat", swapped_after)
    assert served(path) == "resident.socket"
    assert path.parent.is_symlink(), "it was looked at"
    assert list(elsewhere.iterdir()) == []


def test_a_file_that_lies_in_the_place_of_roots_new_socket_is_never_given_away(
    place: Path, secret: Path
) -> None:
    path = place / "run" / "socket"
    with attacked(lambda: (path.unlink(), path.symlink_to(secret))):
        for _ in range(TRIES):
            assert served(path) == ""
            assert is_roots(secret)
            assert stat.S_ISSOCK(path.lstat().st_mode)


def test_the_user_and_the_group_reach_the_socket_and_nobody_changes_the_folder(
    place: Path,
) -> None:
    path = place / "run" / "socket"
    with listen(path, uid=DAEMON.uid, gid=NOBODY.gid):
        socket, folder = path.stat(), path.parent.stat()
        assert (socket.st_uid, socket.st_gid) == (DAEMON.uid, NOBODY.gid)
        assert stat.S_IMODE(socket.st_mode) == 0o660
        assert (folder.st_uid, stat.S_IMODE(folder.st_mode)) == (0, 0o711)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_folder_of_roots_that_others_write_to_is_not_taken(place: Path, mode: int) -> None:
    (place / "run").mkdir()
    (place / "run").chmod(mode)
    assert served(place / "run" / "socket") == "resident.socket"
    assert list((place / "run").iterdir()) == []
