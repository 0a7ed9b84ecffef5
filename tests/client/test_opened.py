"""The watch of the other tests sees what is read and what could be written."""

from __future__ import annotations

import os
from pathlib import Path

from tests.client.opened import OPENED, watching


def test_the_watch_sees_what_is_read_and_what_is_written(tmp_path: Path) -> None:
    with watching():
        (tmp_path / "new").write_text("x")
        (tmp_path / "new").read_bytes()
        os.close(os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT))
    assert OPENED.for_writing == [str(tmp_path / "new"), str(tmp_path / "other")]
    assert OPENED.names == [str(tmp_path / name) for name in ("new", "new", "other")]
