"""Users: root is given up whole, and what another may read is asked of the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from confide.client.users import may_read, may_write, user_named
from confide.common.errors import ConfideError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become others")

BECOME = """
import os
from confide.client.users import become, user_named
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
