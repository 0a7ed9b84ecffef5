"""Users: root is given up whole, and what another may read is asked of the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from confide.client.site.users import (
    as_owner_of,
    as_user,
    may_read,
    may_write,
    stranger_at,
    user_named,
)
from confide.common.errors import ConfideError

DAEMON = user_named("daemon")  # a user that every machine has
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")

BECOME = """
import os
from confide.client.site.users import become, user_named
become(user_named("daemon"))
try:
    os.setresuid(0, 0, 0)
except PermissionError:
    print(os.getresuid(), os.getresgid(), os.getgroups())
"""


def test_a_user_that_is_not_there_is_said_with_the_command_that_makes_it() -> None:
    with pytest.raises(ConfideError, match="no user 'confide-x'") as caught:
        user_named("confide-x")
    assert caught.value.code == "user.unknown"
    assert caught.value.hint.startswith("Run: useradd --system")


def test_root_is_no_user_to_become() -> None:
    with pytest.raises(ConfideError) as caught:
        user_named("root")
    assert caught.value.code == "user.root"


@needs_root
def test_nothing_of_root_is_kept_and_there_is_no_way_back(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BECOME], cwd=root, capture_output=True, text=True, check=True
    )
    user = user_named("daemon")
    assert done.stdout.strip() == f"{(user.uid,) * 3} {(user.gid,) * 3} []"


@needs_root
def test_what_another_user_may_is_what_the_system_would_let_it() -> None:
    nobody = user_named("nobody")
    assert may_read(nobody, Path("/etc/passwd"))
    assert not may_write(nobody, Path("/etc/passwd"))
    assert not may_read(nobody, Path("/etc/shadow"))
    assert not may_read(nobody, Path("/etc/none"))


@needs_root
def test_a_way_is_roots_alone_where_nobody_else_may_change_a_step_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "confide"
    folder.mkdir(parents=True, mode=0o755)
    assert stranger_at(folder) is None
    folder.chmod(0o775)
    assert stranger_at(folder) == folder
    folder.chmod(0o1777)
    assert stranger_at(folder) == folder, "in /tmp itself anybody makes a file first"
    folder.chmod(0o755)
    os.chown(folder.parent, DAEMON.uid, DAEMON.gid)
    assert stranger_at(folder) == folder.parent
    (tmp_path / "link").symlink_to(folder)
    assert stranger_at(tmp_path / "link") == folder.parent
    os.chown(folder.parent, 0, 0)
    assert stranger_at(tmp_path / "link") is None
    (tmp_path / "further").symlink_to(tmp_path / "link")
    os.chown(tmp_path / "link", DAEMON.uid, DAEMON.gid, follow_symlinks=False)
    for way in ("link", "further"):  # where it leads today is root's, and tomorrow not
        assert stranger_at(tmp_path / way) == tmp_path / "link"


@needs_root
def test_in_a_folder_of_anothers_root_acts_as_the_other_and_is_root_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.chown(tmp_path, DAEMON.uid, DAEMON.gid)
    with as_owner_of(tmp_path):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (DAEMON.uid, DAEMON.gid, [])
    assert (os.geteuid(), os.getegid()) == (0, 0)
    with pytest.raises(ZeroDivisionError), as_owner_of(tmp_path):
        raise ZeroDivisionError
    assert os.geteuid() == 0


@needs_root
def test_a_child_does_it_as_the_user_and_its_error_comes_back_whole() -> None:
    def who() -> list[int]:
        return [os.geteuid(), os.getegid(), *os.getgroups()]

    def refuse() -> None:
        raise ConfideError("data.broken", "It is broken.", "Mend it.")

    assert as_user(DAEMON, who) == [DAEMON.uid, DAEMON.gid]
    assert as_user(None, who)[0] == 0
    with pytest.raises(ConfideError) as caught:
        as_user(DAEMON, refuse)
    assert str(caught.value) == "[data.broken] It is broken. Mend it."
    with pytest.raises(ConfideError) as caught:
        as_user(DAEMON, lambda: 1 / 0)
    assert caught.value.code == "user.change"
