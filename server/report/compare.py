"""Two reports held against each other: every place where they differ, by its name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import plain

TOLERANCE = 1e-6  # relative; both sides run the same accountant on the same events
MOST_SHOWN = 60  # characters of a value
_ABSENT = object()
_NAMES = ("name", "of", "what")  # what a part of a list is called by


def differences(made: Any, told: Any) -> list[str]:
    """Where ``told`` is not what was ``made`` again: the place, and both values."""
    return list(_walk((), made, told))


def same(one: Any, other: Any) -> bool:
    """Equal words and shapes, numbers within the tolerance."""
    return not differences(one, other)


def _walk(place: tuple[str, ...], made: Any, told: Any) -> Iterator[str]:
    if isinstance(made, Mapping) and isinstance(told, Mapping):
        for key in dict.fromkeys([*made, *told]):
            yield from _walk((*place, str(key)), made.get(key, _ABSENT), told.get(key, _ABSENT))
    elif _is_list(made) and _is_list(told):
        yield from _parts(place, made, told)
    elif not _equal(made, told):
        where = plain(" / ".join(place))
        yield f"{where}: made again it is {_shown(made)}, the report says {_shown(told)}"


def _parts(place: tuple[str, ...], made: Sequence[Any], told: Sequence[Any]) -> Iterator[str]:
    """Parts with names are found by them, others by their place."""
    one, other = _named(made), _named(told)
    if one is not None and other is not None:
        if list(one) != list(other) and set(one) == set(other):
            yield f"{plain(' / '.join(place))}: in another order"
        yield from _walk(place, one, other)
        return
    for at in range(max(len(made), len(told))):
        mine, theirs = (parts[at] if at < len(parts) else _ABSENT for parts in (made, told))
        yield from _walk((*place, str(at + 1)), mine, theirs)


def _named(parts: Sequence[Any]) -> dict[str, Any] | None:
    """By name, where every part has one of its own."""
    found = {}
    for part in parts:
        name = _name(part)
        if name is None or name in found:
            return None
        found[name] = part
    return found


def _name(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    return next((str(part[key]) for key in _NAMES if isinstance(part.get(key), str)), None)


def _equal(one: Any, other: Any) -> bool:
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-12)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    text = plain(text)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
