"""Conversations through the tokenizer's own chat template: what the model is to say, and when.

Only what an assistant says is a target. Where its turns begin and end is found by rendering the
conversation up to each of them, which is what generation will see, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import ConfideError
from ..text.readers import Message, Record
from .example import IGNORED

CHAT = "chat"  # the value of task.template


def conversation(record: Record) -> list[Message]:
    """A record's messages; a text and its target are a question and its answer."""
    if record.messages:
        return list(record.messages)
    asked = [Message("user", record.text)]
    return asked if record.target is None else [*asked, Message("assistant", record.target)]


def prompt_ids(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Token ids up to where the assistant speaks."""
    said = messages[:-1] if messages[-1].role == "assistant" else messages
    return _rendered(said, tokenizer, answer=True)


def turns(messages: Sequence[Message], tokenizer: Any, number: int) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and the target of each: the id itself where the assistant
    speaks.

    Raises:
        ConfideError: ``data.no-answer``, or ``model.chat-template`` for a template that renders
            the beginning of a conversation differently once it goes on.
    """
    ids = _rendered(messages, tokenizer, answer=False)
    targets = [IGNORED] * len(ids)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _rendered(messages[:place], tokenizer, answer=True)
        after = _rendered(messages[: place + 1], tokenizer, answer=False)
        if ids[: len(before)] != before or ids[: len(after)] != after:
            _unusable("renders a conversation differently once it goes on")
        targets[len(before) : len(after)] = ids[len(before) : len(after)]
    if all(target == IGNORED for target in targets[1:]):
        raise ConfideError(
            "data.no-answer",
            f"Record {number} has no message of the assistant.",
            "A conversation needs one with the role 'assistant'.",
        )
    return ids, targets


def _rendered(messages: Sequence[Message], tokenizer: Any, *, answer: bool) -> list[int]:
    if not tokenizer.chat_template:
        _unusable("is missing")
    text = _apply([(m.role, m.content) for m in messages], tokenizer, answer=answer)
    if isinstance(text, Exception):
        _unusable(*_why_not([m.role for m in messages], tokenizer, text, answer=answer))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _apply(turns: Sequence[tuple[str, str]], tokenizer: Any, *, answer: bool) -> str | Exception:
    rows = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(
            tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=answer)
        )
    except Exception as error:  # noqa: BLE001 - a template may raise what it likes, text included
        return error.with_traceback(None)


def _why_not(
    roles: Sequence[str], tokenizer: Any, error: Exception, *, answer: bool
) -> tuple[str, str]:
    """Why a template does not render a conversation of these roles, and the way out. It is asked
    again without a word of the record, so that its own reason can be told."""
    unknown = f"cannot render a record ({type(error).__name__})"
    if not set(roles) <= _KNOWN_ROLES:  # a role is the record's own word
        known = ", ".join(sorted(_KNOWN_ROLES))
        return unknown, f"It may be a role that is none of {known}."
    found = _apply([(role, _NO_TEXT) for role in roles], tokenizer, answer=answer)
    if not isinstance(found, Exception):
        return unknown, _OTHERWISE
    reason = "".join(c for c in " ".join(str(found).split()) if c.isprintable())
    said = f"refuses the roles {', '.join(roles[:8])}: {reason:.200}"
    for role in dict.fromkeys(roles):
        others = [(one, _NO_TEXT) for one in roles if one != role]
        if others and not isinstance(_apply(others, tokenizer, answer=answer), Exception):
            return said, (
                f"It takes no message of the role {role!r}: put what it says at the beginning of"
                " the next message, or leave it out."
            )
    return said, (
        "Join messages of one role that follow each other, and begin with the user's; or use a"
        " model whose template takes them."
    )


_KNOWN_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_NO_TEXT = "text"
_OTHERWISE = "Use a model made for chat, or task.template = '{text}'."


def _unusable(reason: str, hint: str = _OTHERWISE) -> NoReturn:
    raise ConfideError("model.chat-template", f"The tokenizer's chat template {reason}.", hint)
