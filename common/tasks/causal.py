"""Causal generation: the next token, of plain text or of the answer to a prompt.

Three forms of a record: a text alone, all of which is learnt; a prompt (through ``task.template``)
and its target, of which only the target is learnt; and with ``task.template = "chat"`` a
conversation, of which only the assistant's words are learnt. A text is cut at ``train.max-length``
tokens; a prompt loses its beginning, so that there is room for what is to be learnt. Logits are
made where something is learnt, and of no other token: with a large vocabulary they would be most of
the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..errors import ConfideError
from ..text.readers import Message, Record
from . import tokens
from .example import IGNORED, Batch, Example
from .generation import check_template, continued, in_words
from .task import DECODER, PERPLEXITY, TEXTS, Described, Place, Refuse, writing

if TYPE_CHECKING:
    from torch import Generator

    from ..settings import Settings, TaskSpec
    from ..text.readers import Record

# Tokens of a prompt that stand before its answer, whatever is cut.
_LEAST_PROMPT = 4
_CHAT_CODE = f"""\
for text in {TEXTS}:
    batch = tokenizer.apply_chat_template(
        [{{{{"role": "user", "content": text}}}}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**batch, max_new_tokens={{new}}, num_beams={{beams}}, do_sample=False)
    print(tokenizer.decode(written[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))
"""


class Causal(tokens.TokenTask):
    """See the module's docstring."""

    kind = "causal"
    target = "allowed"
    takes = ("template", "target_length", "beams")
    known = (
        PERPLEXITY, "exact-match", "token-f1", "rougeL", "chrf", "bleu", "rouge1", "rouge2",
        "token-error",
    )  # fmt: skip
    hub = "text-generation"
    does = "goes on with a text"
    described: ClassVar[Described] = {"text-generation": {}}
    small_model = DECODER
    learns_from = ("messages", "alone", "texts")
    transformers_class = "AutoModelForCausalLM"

    @classmethod
    def shown_of(cls, spec: TaskSpec) -> int:
        """More for written text: once it is written, its other metrics cost nothing."""
        return 8 if cls.writes(spec) else 1

    @classmethod
    def check_settings(cls, settings: Settings, refuse: Refuse) -> None:
        task, longest = settings.task, settings.train.max_length
        if task.template != CHAT:
            check_template(task, refuse)
        if settings.data.target and task.target_length + _LEAST_PROMPT > longest:
            refuse(
                f"task.target-length = {task.target_length} leaves no room for a prompt in"
                f" train.max-length = {longest}.",
                "Shorten the one or lengthen the other.",
            )

    @classmethod
    def writes(cls, spec: TaskSpec) -> bool:
        return spec.metric not in ("", PERPLEXITY)

    @classmethod
    def card_code(cls, told: Mapping[str, Any]) -> str:
        new, beams, template = (
            told[f"task.{name}"] for name in ("target-length", "beams", "template")
        )
        if template == CHAT:
            return _CHAT_CODE.format(new=new, beams=beams)
        return writing(template, new=new, beams=beams, alone=True)

    @classmethod
    def pipeline_tag(cls, told: Mapping[str, Any], *, merged: bool) -> str | None:
        return cls.hub

    def peft_task_type(self) -> str:
        return "CAUSAL_LM"

    def check(self, config: Any, tokenizer: Any) -> None:
        """Refuse an encoder: transformers has a causal class for BERT, too, but unless it was
        made a decoder each of its tokens sees the ones that it is to foretell."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        both_ways = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if config.is_encoder_decoder or (both_ways and not getattr(config, "is_decoder", False)):
            raise ConfideError(
                "task.model",
                f"task.kind = 'causal' needs a decoder, which {config.model_type!r:.100} is not.",
                "Use a model such as GPT-2, Llama or SmolLM2, or task.kind = 'seq2seq' for T5.",
            )
        tokens.bounds(tokenizer)
        context = _context(config)
        if context is not None and self.spec.target_length >= context:
            raise ConfideError(
                "settings.range",
                f"task.target-length = {self.spec.target_length} leaves no room for a prompt in"
                f" the {context} tokens that the model reads.",
                f"Choose 2 to {context - 1}; a half of that is plenty.",
            )
        if self.spec.template == CHAT and not tokenizer.chat_template:
            raise ConfideError(
                "model.chat-template",
                "task.template = 'chat', but the tokenizer has no chat template.",
                "Use a model made for chat, or task.template = '{text}'.",
            )

    def encode(
        self, records: Sequence[Record], tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Example]:
        """Token ids of each record, with a target for each of them.

        Raises:
            ConfideError: ``data.messages``, ``data.no-answer`` or ``model.chat-template``.
        """
        if self.spec.template == CHAT:
            return [
                self._cut(*turns(conversation(r), tokenizer, n), max_length)
                for n, r in enumerate(records, start=1)
            ]
        _refuse_messages(records)
        begin, end = tokens.bounds(tokenizer)
        bodies = tokens.bare([self._prompt(r) for r in records], tokenizer)
        answers = tokens.bare([self._answer(r) for r in records], tokenizer)
        out = []
        for record, body, answer in zip(records, bodies, answers, strict=True):
            if record.target is None:
                ids = [begin, *body, end]
                out.append(self._cut(ids, [IGNORED, *ids[1:]], max_length))
                continue
            learnt = [*answer[: self.spec.target_length - 1], end]
            kept = body[-(max_length - len(learnt) - 1) :]
            targets = [*[IGNORED] * (1 + len(kept)), *learnt]
            out.append(Example((begin, *kept, *learnt), tuple(targets)))
        return out

    def _prompt(self, record: Record) -> str:
        return self.spec.template.replace("{text}", record.text)

    def _answer(self, record: Record) -> str:
        """With the space that stands between two words."""
        apart = "" if self._prompt(record)[-1:].isspace() else " "
        return apart + record.target if record.target is not None else ""

    def _cut(self, ids: list[int], targets: list[int], max_length: int) -> Example:
        """The first ``max_length`` tokens, or the last ones where the first teach nothing."""
        if all(target == IGNORED for target in targets[1:max_length]):
            return Example(tuple(ids[-max_length:]), tuple(targets[-max_length:]))
        return Example(tuple(ids[:max_length]), tuple(targets[:max_length]))

    def collate(self, examples: Sequence[Example], place: Place) -> Batch:
        batch = _foretelling(tokens.token_batch(examples, place))
        return _learnt_places(batch) if place.model.get_output_embeddings() else batch

    def generate(
        self, records: Sequence[Record], place: Place, *, whole: bool = False
    ) -> list[str]:
        """The model's answer to each prompt."""
        new, prompts = self.spec.target_length, self._prompts(records, place.tokenizer)
        context = _context(place.model.config)
        if context is not None and whole:
            tokens.check_lengths(prompts, context - new)
        if context is not None:
            prompts = [prompt[-(context - new) :] for prompt in prompts]
        return in_words(continued(prompts, place, new=new, beams=self.spec.beams), place)

    def _prompts(self, records: Sequence[Record], tokenizer: Any) -> list[list[int]]:
        if self.spec.template == CHAT:
            return [prompt_ids(conversation(r), tokenizer) for r in records]
        _refuse_messages(records)
        begin, _ = tokens.bounds(tokenizer)
        bodies = tokens.bare([self._prompt(r) for r in records], tokenizer)
        return [[begin, *body] for body in bodies]

    def made_up(
        self, lengths: Sequence[int], size: int, generator: Generator, place: Place
    ) -> list[Example]:
        rows = [tokens.random_ids(length, size, generator) for length in lengths]
        return [Example(ids, (IGNORED, *ids[1:])) for ids in rows]


def _foretelling(batch: Batch) -> Batch:
    """Each target at the place that predicts it, which is the one before its own."""
    import torch

    ended = torch.full_like(batch.targets[:, :1], IGNORED)
    return replace(batch, targets=torch.cat([batch.targets[:, 1:], ended], 1))


def _learnt_places(batch: Batch) -> Batch:
    """The batch with the places of each example's own targets, in their order, and those targets;
    the model still reads all of the text. An example with fewer than another is filled up."""
    learnt = batch.targets != IGNORED
    most = max(1, int(learnt.sum(1).max()))
    places = learnt.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return replace(batch, targets=batch.targets.gather(1, places), places=places)


def _context(config: Any) -> int | None:
    """How many tokens the model reads, prompt and answer together; None if it does not say."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None  # XLNet says -1


def _refuse_messages(records: Sequence[Record]) -> None:
    for number, record in enumerate(records, start=1):
        if record.messages:
            raise ConfideError(
                "data.messages",
                f"Record {number} is a list of messages.",
                "Set task.template = 'chat' to learn from conversations.",
            )


# --- conversations ---
#
# Conversations through the tokenizer's own chat template: what the model is to say, and when.
#
# Only what an assistant says is a target. Where its turns begin and end is found by rendering the
# conversation up to each of them, which is what generation will see, too.


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
