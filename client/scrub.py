"""Exceptions -> codes: what a failure at the holder may say to the coordinator.

Flower sends the text of an exception to the coordinator word for word, and an exception of a
tokenizer or a parser quotes the record it failed on. So no exception leaves a handler; a code
does. Foreign exceptions are told apart by type only.
"""

from __future__ import annotations

import errno
import logging
import re

from ..common.errors import ConfideError

# A code is a constant of the program; whatever looks otherwise may have been made from text.
_CODE = re.compile(r"[a-z]+(-[a-z]+)*(\.[a-z]+(-[a-z]+)*)+")

logger = logging.getLogger("confide.holder")


def code_of(error: BaseException) -> str:
    """The code that may leave. The local log gets our own messages, and of foreign exceptions
    the type and the place, never the text."""
    if isinstance(error, ConfideError) and _CODE.fullmatch(error.code):
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
