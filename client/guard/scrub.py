"""Exceptions -> codes, and silence: what a failure at the holder may say to anybody.

Flower sends the text of an exception to the coordinator word for word, and an exception of a
tokenizer or a parser quotes the record it failed on. So no exception leaves a handler; a code
does. Foreign exceptions are told apart by type only. And since a library may print or log what it
fails on, and a Rust extension writes its panics to the process's own stderr, nothing that is
printed or logged while text is in use gets anywhere.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO, TypeVar

from ...common.errors import ConfideError

# A code is a constant of the program; whatever looks otherwise may have been made from text.
_CODE = re.compile(r"[a-z]+(-[a-z]+)*(\.[a-z]+(-[a-z]+)*)+")
_MOST_CODE = 64
_EVERY_LEVEL = 2**31

T = TypeVar("T")

logger = logging.getLogger("confide.holder")


def code_of(error: BaseException) -> str:
    """The code that may leave. The local log gets our own messages, and of foreign exceptions
    the type and the place, never the text."""
    if isinstance(error, ConfideError) and _is_code(error.code):
        logger.warning("refused: %s", error)
        return error.code
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_name}:{place.tb_lineno}" if place else "?"
    logger.error("failed: %s in %s", type(error).__name__, where)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "disk.full"
    return "holder.memory" if isinstance(error, MemoryError) else "holder.failed"


def tried(compute: Callable[[], T]) -> T | None:
    """What ``compute`` gives, or None whatever goes wrong with it. For what private text may make
    fail after the charge: that it did must not be seen, so that the text counts as none there."""
    try:
        return compute()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a panic of a Rust extension is no Exception
        return None


def _is_code(code: object) -> bool:
    return isinstance(code, str) and len(code) <= _MOST_CODE and _CODE.fullmatch(code) is not None


class _Silence:
    """How deep the process is in ``quiet`` blocks, of all its threads."""

    lock = threading.Lock()
    depth = 0
    inside: ExitStack


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what is printed or logged in the block, by Python or below it, in the whole process.

    The log of what went wrong is written afterwards by ``code_of``. ``CONFIDE_DEBUG=1`` leaves
    everything as it is. Blocks may nest and overlap; the last to end restores.
    """
    if os.environ.get("CONFIDE_DEBUG") == "1":
        yield
        return
    with _Silence.lock:
        if _Silence.depth == 0:
            _Silence.inside = _silenced()
        _Silence.depth += 1
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.depth -= 1
            if _Silence.depth == 0:
                _Silence.inside.close()


def _silenced() -> ExitStack:
    """Everything goes nowhere until the stack is closed."""
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
        streams = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
        for number in (1, 2):
            _redirect(stack, number, nowhere.fileno(), streams)
        stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(redirect_stderr(nowhere))
        level = logging.root.manager.disable
        logging.disable(_EVERY_LEVEL)
        stack.callback(logging.disable, level)
        return stack.pop_all()


def _redirect(stack: ExitStack, number: int, target: int, streams: list[TextIO | None]) -> None:
    """Point a file descriptor elsewhere; what is buffered goes where it was meant to go."""
    try:
        kept = os.dup(number)
    except OSError:  # it is closed: nothing can be written to it
        return

    def restore() -> None:
        _flush(streams)
        os.dup2(kept, number)
        os.close(kept)

    _flush(streams)
    os.dup2(target, number)
    stack.callback(restore)


def _flush(streams: list[TextIO | None]) -> None:
    for stream in streams:
        if stream is not None:
            # A reader that went away, a full disk or a closed stream: there is nobody to tell.
            with suppress(OSError, ValueError):
                stream.flush()
