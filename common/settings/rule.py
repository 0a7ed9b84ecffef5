"""One setting: which values it takes, what it means, and what the libraries around it call it.

A setting is a field of a dataclass in ``specs``; its rule is the metadata there, and the only place
where all this stands. The checks, ``confide settings``, its JSON schema and the hint at an unknown
name are made from it. The libraries are Hugging Face's (``HF``: transformers and TRL), PEFT, Opacus
and Flower.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..errors import ConfideError, nearest

Scalar = str | int | float | bool

# Characters of a setting that is text: what a coordinator sends must not fill memories and logs.
_MOST_TEXT = 10_000
_LIST = "`confide settings` lists all."
_NAME = re.compile(r"(\S+) ([^\s;]+)(?: \(([^()]*)\))?(?:; |$)")
# What people look for that is no setting here.
_ABSENT = {
    "secure_mode": "It is always on: all noise is drawn from a secure generator.",
    "poisson_sampling": "It is always on: each unit is drawn by train.rate.",
    "accountant": "The figure is PLD's, with RDP's and PRV's beside it.",
    "grad_sample_mode": "Gradients are always of each record, and exact.",
    "modules_to_save": "The task's head is always trained and saved.",
    "bias": "Biases of the base model stay frozen.",
    "use_dora": "DoRA is not offered; aggregate.method lists what is.",
    "use_rslora": "Set lora.alpha to alpha times the root of lora.rank for the same scale.",
    "logging_steps": "Every round is written to metrics.jsonl.",
    "save_steps": "A checkpoint is kept after each round.",
    "save_strategy": "A checkpoint is kept after each round.",
    "push_to_hub": "Nothing is uploaded; adapter/ has the Hub's layout.",
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Of one setting.

    Attributes:
        key: ``room.name``, as it is written.
        default: as it is written; ``word`` where that is the default.
        means: what it is, with its unit.
        names: what others call it, as ``HF warmup_steps (counts steps); ...``.
        options: all values that a text may have, if they are few.
        low, high: of a number; with ``above`` the lower end is excluded.
        word: is written in place of the number that the program takes it for (its own default).
    """

    key: str
    default: Scalar
    means: str
    names: str = ""
    options: Collection[str] = ()
    low: float | None = None
    high: float | None = None
    above: bool = False
    word: str = ""

    @property
    def kind(self) -> type:
        """The type of a value; ``float`` takes whole numbers, too."""
        return float if self.word else type(self.default)

    @property
    def type_in_words(self) -> str:
        """What may be written."""
        other = f"{self.word!r} or " if self.word else ""
        return other + ("one of a list" if self.options else kind_of(self.kind()))

    @property
    def range_in_words(self) -> str:
        """The allowed values; empty for any text."""
        if self.low is None or self.high is None:
            return ", ".join(option or "''" for option in self.options)
        return f"{'(' if self.above else '['}{_shown(self.low)}, {_shown(self.high)}]"

    @property
    def usual(self) -> list[tuple[str, str, str]]:
        """What others call it: library, name, what differs there."""
        return _NAME.findall(self.names)

    def to_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        names = [dict(zip(("library", "name", "differs"), one, strict=True)) for one in self.usual]
        return {
            "key": self.key,
            "type": self.type_in_words,
            "range": self.range_in_words,
            "options": list(self.options),
            "default": self.default,
            "means": self.means,
            "names": names,
        }

    def schema(self) -> dict[str, Any]:
        """Its part of a JSON schema."""
        plain: dict[str, Any] = {"type": {int: "integer", float: "number"}.get(self.kind, "string")}
        if self.options:
            plain["enum"] = list(self.options)
        if self.low is not None:
            plain["exclusiveMinimum" if self.above else "minimum"] = self.low
            plain["maximum"] = self.high
        told = {"description": self.means, "default": self.default}
        return told | ({"anyOf": [{"const": self.word}, plain]} if self.word else plain)

    def parsed(self, text: str) -> Scalar:
        """The value of ``KEY=VALUE``: what TOML makes of it where a number is wanted, or the text,
        to be refused."""
        if self.kind is str or text == self.word:
            return text.strip("'\"")
        try:
            value: Scalar = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text.strip("'\"") if self.word else text
        return value

    def checked(self, value: Any) -> Any:
        """The value as the program takes it.

        Raises:
            ConfideError: ``settings.type`` or ``settings.range``, with name, value and range.
        """
        if self.word and value == self.word:
            return float(self.low or 0)
        if self.kind is float and type(value) is int:
            # A whole number too large for a float is out of every range.
            value = float(value) if abs(value) < 2**1000 else math.inf
        if type(value) is not self.kind:  # exactly: a truth value is no number here
            raise ConfideError(
                "settings.type",
                f"{self.key} = {value!r:.100} is {kind_of(value)}, but must be"
                f" {self._other()}{kind_of(self.kind())}.",
                f"Write for example {self.key} = {self.default!r}.",
            )
        if isinstance(value, str):
            self._check_text(value)
        if self.low is not None:
            self._check_number(value)
        return value

    def _other(self) -> str:
        return f"{self.word!r} or " if self.word else ""

    def _check_text(self, value: str) -> None:
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ConfideError(
                "settings.range",
                f"{self.key} = {value!r:.100} is not text in UTF-8: a part of a character stands"
                " alone.",
                "Write it in UTF-8.",
            )
        if len(value) > _MOST_TEXT:
            raise ConfideError(
                "settings.range",
                f"{self.key} = {value!r:.100}... has {len(value)} characters, more than"
                f" {_MOST_TEXT}.",
                "Write less.",
            )
        if self.options and value not in self.options:
            raise ConfideError(
                "settings.range",
                f"{self.key} = {value!r:.100} is not one of {', '.join(self.options)}.",
                nearest(value[:100], self.options),
            )

    def _check_number(self, value: Any) -> None:
        low, high = self.low or 0.0, self.high or 0.0
        inside = low <= value <= high  # which no NaN is
        if not inside or (self.above and value == low):
            ends = f"{'(' if self.above else '['}{low:g}, {high:g}]"
            raise ConfideError(
                "settings.range",
                f"{self.key} = {value!r:.100} is outside {ends}.",
                f"The default is {self.default!r}.{self._why_not(value)}",
            )

    def _why_not(self, value: float) -> str:
        """What a library takes the excluded end for, where a word stands for it here."""
        if not self.word or value:
            return ""
        return "".join(f" {lib}'s {name} {differs}." for lib, name, differs in self.usual)


def number(default: float, bounds: str, means: str, names: str = "", *, word: str = "") -> Any:
    """A field for a number within ``bounds``: ``[0, 1]``, or ``(0, 1]`` without the 0."""
    low, high = (float(end) for end in bounds[1:-1].split(","))
    rule = {"low": low, "high": high, "above": bounds[0] == "(", "word": word}
    return field(default=default, metadata={"means": means, "names": names, **rule})


def choice(default: str, options: Collection[str], means: str, names: str = "") -> Any:
    """A field for one of a few texts."""
    told = {"means": means, "names": names, "options": options}
    return field(default=default, metadata=told)


def any_text(default: str, means: str, names: str = "") -> Any:
    """A field for any text."""
    return field(default=default, metadata={"means": means, "names": names})


def kind_of(value: Any) -> str:
    """A value's type in plain words."""
    names = {bool: "a truth value", int: "a whole number", float: "a number", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")


def found(name: str, rules: Sequence[Rule]) -> list[tuple[Rule, str]]:
    """The settings that a name may mean, each with what differs where another library calls it so:
    its own key, a room, a library's name for it, or its own name without the room."""
    plain, last = _plain(name), _plain(name).rpartition(".")[2]
    whole = [(rule, "") for rule in rules if plain in (rule.key, rule.key.partition(".")[0])]
    if whole:
        return whole
    usual = {
        rule.key: (rule, f"{library} calls it {one}" + (f"; it {differs}" if differs else ""))
        for rule in rules
        for library, one, differs in reversed(rule.usual)
        if _plain(one) == last
    }
    own = [(rule, "") for rule in rules if rule.key.partition(".")[2] == last]
    return list(usual.values()) or own


def hint(name: str, rules: Sequence[Rule]) -> str:
    """What to do about a name that is no setting; never a list of all."""
    absent = {_plain(one): told for one, told in _ABSENT.items()}
    last = _plain(name).rpartition(".")[2]
    if last in absent:
        return absent[last]
    meant = found(name, rules) if last else []
    if not meant:
        close = _close(_plain(name), rules)
        meant = found(close, rules) if close else []
    if not meant or len(meant) > 3:
        return f"{_LIST}"
    keys = " or ".join(repr(rule.key) for rule, _ in meant)
    told = f" ({meant[0][1]})" if meant[0][1] else ""
    return f"Did you mean {keys}{told}?"


def _close(name: str, rules: Sequence[Rule]) -> str:
    """The nearest key or, for a name without its room, the nearest other name."""
    keys = [rule.key for rule in rules]
    others = {_plain(one) for rule in rules for _, one, _ in rule.usual}
    others |= {rule.key.partition(".")[2] for rule in rules}
    last = name.rpartition(".")[2]
    near = get_close_matches(name, keys, n=1, cutoff=0.75) or get_close_matches(
        last, others, n=1, cutoff=0.75
    )
    return near[0] if near else next(iter(get_close_matches(name, keys, n=1, cutoff=0.6)), "")


def _plain(name: str) -> str:
    return name.strip().lstrip("-").lower().replace("_", "-")


def _shown(end: float) -> str:
    return f"{end:,.0f}" if abs(end) >= 1000 else f"{end:g}"
