"""A look at every write, sync and truncation that Python's sqlite3 makes, before it is made.

The default VFS (SQLite's door to the operating system) is copied; the copy hands out the same
open files with four functions of their method table replaced by ones that tell ``look`` first and
then call the original. No other SQLite, no wrapper around a file: what is seen is what runs.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_Pointer = ctypes.c_void_p
_Int, _Long, _Text = ctypes.c_int, ctypes.c_int64, ctypes.c_char_p


@dataclass(frozen=True)
class Write:
    """Bytes at a place of a file."""

    file: Path
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """A file cut to a size."""

    file: Path
    size: int


@dataclass(frozen=True)
class Sync:
    """A file made durable with all that was written to it, its name included."""

    file: Path


@dataclass(frozen=True)
class Delete:
    """A name removed; for good at once only if the folder is synced with it."""

    file: Path
    durable: bool


Operation = Write | Truncate | Sync | Delete

_X_WRITE = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Int, _Long)
_X_TRUNCATE = ctypes.CFUNCTYPE(_Int, _Pointer, _Long)
_X_SYNC = ctypes.CFUNCTYPE(_Int, _Pointer, _Int)
_X_OPEN = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Pointer, _Int, _Pointer)
_X_DELETE = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Int)


class _Methods(ctypes.Structure):
    """sqlite3_io_methods: ours by type, the others as addresses."""

    _fields_ = [
        ("version", _Int),
        ("close", _Pointer),
        ("read", _Pointer),
        ("write", _X_WRITE),
        ("truncate", _X_TRUNCATE),
        ("sync", _X_SYNC),
        ("others", _Pointer * 13),  # up to xUnfetch, of version 3
    ]


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, up to the functions that are not looked at."""

    _fields_ = [
        ("version", _Int),
        ("file_size", _Int),
        ("longest_path", _Int),
        ("following", _Pointer),
        ("name", _Text),
        ("data", _Pointer),
        ("open", _X_OPEN),
        ("delete", _X_DELETE),
        ("others", _Pointer * 14),  # up to xNextSystemCall, of version 3
    ]


class _File(ctypes.Structure):
    """sqlite3_file: its first word leads to its methods."""

    _fields_ = [("methods", ctypes.POINTER(_Methods))]


def _library() -> Any:
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = [_Text]
    for name in ("sqlite3_vfs_register", "sqlite3_vfs_unregister"):
        getattr(library, name).argtypes = [
            ctypes.POINTER(_Vfs),
            *[_Int] * name.endswith("_register"),
        ]
    return library


@contextlib.contextmanager
def looking(look: Callable[[Operation], None]) -> Iterator[None]:
    """Call ``look`` before each operation of every database opened in the body, and closed there.

    ``look`` must not raise: C code calls it.
    """
    library = _library()
    original = library.sqlite3_vfs_find(None)
    ours = _Vfs.from_buffer_copy(original.contents)
    ours.name = b"looking"
    kept: list[Any] = []  # what C holds an address of must live

    # A name is passed on as the address that came: SQLite keeps it for as long as the file is open.
    def open_file(vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        status: int = original.contents.open(vfs, name, file, flags, out)
        opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
        if status == 0 and name is not None and opened.methods:
            table = _observed(opened.methods.contents, _path(name), look)
            kept.append(table)
            opened.methods = ctypes.pointer(table)
        return status

    def delete(vfs: int, name: int, sync_folder: int) -> int:
        look(Delete(_path(name), bool(sync_folder)))
        status: int = original.contents.delete(vfs, name, sync_folder)
        return status

    ours.open, ours.delete = _X_OPEN(open_file), _X_DELETE(delete)
    library.sqlite3_vfs_register(ctypes.byref(ours), 1)
    try:
        yield
    finally:
        library.sqlite3_vfs_unregister(ctypes.byref(ours))
        library.sqlite3_vfs_register(original, 1)


def _path(name: int) -> Path:
    return Path(ctypes.string_at(name).decode())


def _observed(methods: _Methods, path: Path, look: Callable[[Operation], None]) -> _Methods:
    """The same methods, each told to ``look`` before it runs."""
    table = _Methods.from_buffer_copy(methods)
    write, truncate, sync = methods.write, methods.truncate, methods.sync

    def on_write(file: int, data: int, size: int, offset: int) -> int:
        look(Write(path, offset, ctypes.string_at(data, size)))
        status: int = write(file, data, size, offset)
        return status

    def on_truncate(file: int, size: int) -> int:
        look(Truncate(path, size))
        status: int = truncate(file, size)
        return status

    def on_sync(file: int, flags: int) -> int:
        look(Sync(path))
        status: int = sync(file, flags)
        return status

    table.write, table.truncate = _X_WRITE(on_write), _X_TRUNCATE(on_truncate)
    table.sync = _X_SYNC(on_sync)
    return table
