"""Tasks of language: what is a target and what is not, what is drawn, and what does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from confide.common.errors import ConfideError
from confide.common.models import loading as models
from confide.common.models.batches import forward
from confide.common.models.loading import LoadedModel, load_model
from confide.common.settings import TaskSpec, from_flat
from confide.common.tasks import TASKS, Example, causal, task_for
from confide.common.tasks.example import IGNORED
from confide.common.tasks.generation import continued
from confide.common.tasks.task import values
from confide.common.text.readers import Message, Record
from tests import tiny


@pytest.fixture(scope="module", autouse=True)
def fresh_models() -> Iterator[None]:
    models._load.cache_clear()
    yield
    models._load.cache_clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = ("classification", "seq2seq", "prompt", "masked", "causal")
    return {task: tiny.save_task_model(tmp_path_factory.mktemp(task), task) for task in kinds}


def load(folder: Path, task: str, **changes: Any) -> LoadedModel:
    settings = tiny.config(folder, folder, folder, **{**tiny.TASKS[task], **changes})
    return load_model(from_flat(settings))


def refused(folder: Path, task: str, **changes: Any) -> ConfideError:
    with pytest.raises(ConfideError) as caught:
        load(folder, task, **changes)
    return caught.value


def encoded(loaded: LoadedModel, *records: Record) -> list[Example]:
    return loaded.task.encode(records, loaded.tokenizer, loaded.max_length)


def learnt(loaded: LoadedModel, example: Example) -> list[str]:
    assert isinstance(example.target, tuple)
    kept = [t for t in example.target if t != IGNORED]
    return list(loaded.tokenizer.convert_ids_to_tokens(kept))


def test_each_kind_has_a_task() -> None:
    assert [task.kind for task in TASKS.values()] == list(TASKS)


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_known_of_a_kind_is_what_its_task_says(kind: str) -> None:
    task = task_for(TaskSpec(kind=kind, labels="a,b" if TASKS[kind].fewest_labels else ""))
    for pooling in ("mean", "model"):
        assert hasattr(transformers, task.model_class(pooling))
    assert task.auto_class().__name__ == task.model_class(task.spec.pooling)


# what is learnt


def test_of_a_plain_text_every_token_is_learnt_and_its_end(folders: dict[str, Path]) -> None:
    loaded = load(folders["causal"], "causal")
    (example,) = encoded(loaded, Record("the day was fine"))
    assert learnt(loaded, example) == ["the", "day", "was", "fine", "[SEP]"]
    assert len(example.ids) == 6


def test_of_a_prompt_nothing_is_learnt(folders: dict[str, Path]) -> None:
    loaded = load(folders["prompt"], "prompt")
    (example,) = encoded(loaded, Record("the day", "warm and kind"))
    assert loaded.tokenizer.decode(list(example.ids)).startswith("[CLS] the day was warm")
    assert learnt(loaded, example) == ["warm", "and", "kind", "[SEP]"]


def test_a_prompt_that_is_too_long_keeps_its_end_and_its_answer(folders: dict[str, Path]) -> None:
    loaded = load(folders["prompt"], "prompt")
    (example,) = encoded(loaded, Record("the day " * 40, "warm " * 40))
    assert len(example.ids) == loaded.max_length
    assert learnt(loaded, example) == ["warm", "warm", "warm", "[SEP]"]
    words = loaded.tokenizer.convert_ids_to_tokens(list(example.ids))
    assert words[-5] == "was"


def test_of_a_conversation_the_assistants_words_alone_are_learnt(folders: dict[str, Path]) -> None:
    loaded = load(folders["causal"], "chat", data__target="")
    talk = [Message("user", "the day"), Message("assistant", "was fine")]
    talk += [Message("user", "a street"), Message("assistant", "was dull")]
    (example,) = encoded(loaded, Record("all of it", None, None, tuple(talk)))
    assert learnt(loaded, example) == ["was", "fine", "[SEP]", "was", "dull", "[SEP]"]


def test_a_target_of_a_text_ends(folders: dict[str, Path]) -> None:
    loaded = load(folders["seq2seq"], "seq2seq")
    examples = encoded(loaded, Record("the day", "fine"), Record("the day", "fine " * 40))
    ends = [e.target[-1] for e in examples if isinstance(e.target, tuple)]
    assert ends == [loaded.tokenizer.eos_token_id] * 2
    assert len(examples[1].target) == loaded.task.spec.target_length  # type: ignore[arg-type]
    source = loaded.tokenizer.decode(list(examples[0].ids), skip_special_tokens=True)
    assert source == "tone: the day"


# what is drawn


def draws(loaded: LoadedModel, text: str, times: int) -> list[Example]:
    (example,) = encoded(loaded, Record(text))
    generator = torch.Generator().manual_seed(5)
    return [loaded.task.redraw(example, loaded, generator) for _ in range(times)]


def test_masks_are_drawn_anew_and_at_least_one(folders: dict[str, Path]) -> None:
    loaded = load(folders["masked"], "masked")
    text = "the day was fine and the street of people was dull"
    (plain,) = encoded(loaded, Record(text))
    found = draws(loaded, text, 400)
    targets = torch.tensor([e.target for e in found])
    hidden = targets != IGNORED
    assert hidden.sum(1).min() >= 1
    assert not hidden[:, 0].any()  # the frame is never hidden
    assert not hidden[:, -1].any()
    share = hidden[:, 1:-1].float().mean()
    # Each word 0.15, and 1/11 more where none was drawn: 0.85^11 / 11.
    assert share == pytest.approx(0.15 + 0.85**11 / 11, abs=0.02)
    ids = torch.tensor([e.ids for e in found])
    assert torch.equal(ids[~hidden], torch.tensor(plain.ids).expand_as(ids)[~hidden])
    masked = (ids == loaded.tokenizer.mask_token_id)[hidden].float().mean()
    assert masked == pytest.approx(0.8, abs=0.05)
    assert len(set(found)) > 100


def test_a_text_of_one_word_still_teaches_it(folders: dict[str, Path]) -> None:
    loaded = load(folders["masked"], "masked")
    assert all(learnt(loaded, example) == ["fine"] for example in draws(loaded, "fine", 20))


@pytest.mark.parametrize("text", ["a", "the day", "the people of the town and its street"])
def test_a_corrupted_text_and_its_spans_are_the_text(folders: dict[str, Path], text: str) -> None:
    loaded = load(folders["seq2seq"], "spans")
    (plain,) = encoded(loaded, Record(text))
    first = loaded.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    marks = set(range(first, first + 20))
    for example in draws(loaded, text, 30):
        assert isinstance(example.target, tuple)
        spans: dict[int, list[int]] = {}
        for token in example.target[:-1]:
            if token in marks:
                spans[token] = []
            else:
                spans[max(spans)].append(token)
        whole = [t for token in example.ids[:-1] for t in spans.get(token, [token])]
        assert tuple(whole) == plain.ids
        hidden = sum(map(len, spans.values()))
        assert hidden == max(1, round(0.15 * len(plain.ids)))


# the loss


def test_a_loss_is_the_mean_over_an_examples_own_tokens(folders: dict[str, Path]) -> None:
    loaded = load(folders["seq2seq"], "seq2seq")
    logits = torch.randn(2, 3, 7)
    targets = torch.tensor([[1, 2, 3], [4, IGNORED, IGNORED]])
    logs = logits.log_softmax(-1)
    by_hand = [-(logs[0, 0, 1] + logs[0, 1, 2] + logs[0, 2, 3]) / 3, -logs[1, 0, 4]]
    assert torch.allclose(loaded.task.losses(logits, targets), torch.stack(by_hand))
    assert loaded.task.counts(targets).tolist() == [3, 1]


def test_a_causal_model_foretells_the_token_to_the_right(folders: dict[str, Path]) -> None:
    loaded = load(folders["prompt"], "prompt")
    examples = [Example((0, 3, 2, 4), (IGNORED, IGNORED, 2, 4)), Example((0, 5), (IGNORED, 5))]
    batch = loaded.task.collate(examples, loaded)
    assert batch.places is not None
    assert batch.places[0].tolist() == [1, 2]
    assert int(batch.places[1, 0]) == 0
    assert batch.targets.tolist() == [[2, 4], [5, IGNORED]]
    assert loaded.task.counts(batch.targets).tolist() == [2, 1]


def test_what_is_written_ends_where_the_text_ends() -> None:
    end, pad = 1, 0
    tokenizer = SimpleNamespace(
        eos_token_id=end, sep_token_id=None, bos_token_id=None, cls_token_id=None, pad_token_id=pad
    )
    made = torch.tensor([[pad, 5, 6, end, pad, pad], [pad, 5, 6, 7, 8, end]])
    model = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=pad),
        device=torch.device("cpu"),
        generate=lambda **_: made,
    )
    place: Any = SimpleNamespace(tokenizer=tokenizer, model=model, max_length=8)
    assert continued([[5], [6]], place, new=5, beams=1) == [[5, 6], [5, 6, 7, 8]]


def test_perplexity_is_over_all_tokens() -> None:
    assert values(("perplexity",), [], [], math.log(7))["perplexity"] == pytest.approx(7)
    assert values(("perplexity",), [], [], 1e6)["perplexity"] == math.inf


def test_of_prompts_no_logits_are_made_and_losses_and_gradients_stay(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(folders["prompt"], "prompt")
    records = [Record("the day", "warm and kind"), Record("the street of the town", "dull")]
    examples = encoded(loaded, *records)

    def passed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        loaded.model.zero_grad()
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(0.01)
        batch = loaded.task.collate(examples, loaded)
        logits = forward(loaded, loaded.task, batch)
        losses = loaded.task.losses(logits, batch.targets)
        losses.sum().backward()
        made = [p.grad for p in loaded.model.parameters() if p.grad is not None]
        return logits, losses.detach(), torch.cat([grad.flatten() for grad in made])

    few, losses, gradient = passed()
    monkeypatch.setattr(causal, "_learnt_places", lambda batch: batch)
    every, whole, same = passed()
    longest = max(len(e.ids) for e in examples)
    most = max(len(learnt(loaded, e)) for e in examples)
    assert (every.shape[1], few.shape[1]) == (longest, most)
    assert torch.allclose(losses, whole, atol=1e-6)
    assert gradient.any()
    assert torch.allclose(gradient, same, atol=1e-6)


def test_a_model_that_goes_its_own_way_to_its_logits_has_the_same_losses(
    folders: dict[str, Path],
) -> None:
    loaded = load(folders["prompt"], "prompt")
    records = [Record("the day", "warm and kind"), Record("the street of the town", "dull")]
    batch = loaded.task.collate(encoded(loaded, *records), loaded)
    known = loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets)
    loaded.model.get_output_embeddings = lambda: torch.nn.Identity()  # type: ignore[method-assign]
    try:
        found = loaded.task.losses(forward(loaded, loaded.task, batch), batch.targets)
    finally:
        del loaded.model.get_output_embeddings
    assert torch.allclose(found, known, atol=1e-6)


def test_of_a_plain_text_all_logits_are_made_but_those_behind_its_end(
    folders: dict[str, Path],
) -> None:
    loaded = load(folders["causal"], "causal")
    examples = encoded(loaded, Record("the day was fine"))
    assert len(examples[0].ids) == 6
    batch = loaded.task.collate(examples, loaded)
    assert forward(loaded, loaded.task, batch).shape[1] == 5


# what does not fit


@pytest.mark.parametrize(
    ("model", "task", "code", "says"),
    [
        ("classification", "seq2seq", "task.model", "T5"),
        ("classification", "causal", "task.model", "decoder"),
        ("seq2seq", "causal", "task.model", "T5"),
        ("seq2seq", "masked", "task.model", "encoder"),
        ("prompt", "masked", "task.model", "encoder"),
        ("prompt", "seq2seq", "task.model", "T5"),
        ("classification", "masked", "model.weights", "masked"),
    ],
)
def test_a_task_that_the_model_is_not_made_for(
    folders: dict[str, Path], model: str, task: str, code: str, says: str
) -> None:
    error = refused(folders[model], task)
    assert error.code == code
    assert says in f"{error.message} {error.hint}"


def test_a_t5_sorts_texts_by_its_encoder(folders: dict[str, Path]) -> None:
    loaded = load(folders["seq2seq"], "classification")
    assert any("classifier" in name for name in loaded.schema.trained)
    assert not any("decoder" in name for name, _ in loaded.schema.shapes)


def test_the_layers_of_a_t5_are_counted_by_its_blocks(folders: dict[str, Path]) -> None:
    names = [name for name, _ in load(folders["seq2seq"], "seq2seq").schema.shapes]
    assert names
    assert all(".block.1." in name for name in names)
    every = [n for n, _ in load(folders["seq2seq"], "seq2seq", lora__layers=0).schema.shapes]
    assert len(every) == 2 * len(names)


def test_no_embedding_is_ever_trained(folders: dict[str, Path]) -> None:
    for task in ("seq2seq", "prompt", "masked", "causal"):
        assert all("lora_B" in name for name in load(folders[task], task).schema.trained)


def test_a_tokenizer_that_cannot_pad(tmp_path: Path) -> None:
    folder = tiny.save_task_model(tmp_path, "causal")
    path = folder / "tokenizer_config.json"
    kept = json.loads(path.read_text())
    kept.pop("pad_token")
    path.write_text(json.dumps(kept))
    error = refused(folder, "causal")
    assert (error.code, "pad_token" in error.hint) == ("model.pad-token", True)


def test_a_conversation_needs_a_template_and_an_answer(folders: dict[str, Path]) -> None:
    question = Record("x", None, None, (Message("user", "the day"),))
    with pytest.raises(ConfideError, match=r"data\.no-answer.*Record 1"):
        encoded(load(folders["causal"], "chat", data__target=""), question)
    with pytest.raises(ConfideError, match=r"data\.messages.*Record 2"):
        encoded(load(folders["causal"], "causal"), Record("a"), question)


def test_a_missing_target_is_named_by_its_record(folders: dict[str, Path]) -> None:
    loaded = load(folders["seq2seq"], "seq2seq")
    with pytest.raises(ConfideError, match=r"data\.missing-target.*Record 2") as caught:
        encoded(loaded, Record("a", "b"), Record("secret"))
    assert "secret" not in str(caught.value)


def test_an_answer_needs_room(folders: dict[str, Path]) -> None:
    error = refused(folders["causal"], "causal", task__target_length=64)
    assert (error.code, "64 tokens" in error.message) == ("settings.range", True)


def test_a_metric_of_another_task() -> None:
    with pytest.raises(ConfideError, match=r"settings\.combination.*bleu.*perplexity"):
        task_for(TaskSpec(kind="masked", metric="bleu"))
    assert task_for(TaskSpec(kind="seq2seq", metric="bleu")).metrics[0] == "bleu"


def test_where_an_answer_is_written_all_that_costs_nothing_is_measured() -> None:
    assert task_for(TaskSpec(kind="causal")).metrics == ("perplexity",)
    written = task_for(TaskSpec(kind="causal", metric="bleu")).metrics
    assert written[0] == "bleu"
    assert {"perplexity", "chrf", "exact-match", "token-f1", "rouge1", "rouge2"} < set(written)


# A chat template that refuses a conversation


GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "[CLS] {{ m['role'] }} {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)
QUOTING = "{{ raise_exception(messages[0]['content'] ~ messages[0]['role']) }}"


def said(folder: Path, template: str, *messages: tuple[str, str]) -> ConfideError:
    loaded = load(folder, "chat")
    known, loaded.tokenizer.chat_template = loaded.tokenizer.chat_template, template
    try:
        with pytest.raises(ConfideError, match=r"model\.chat-template") as caught:
            encoded(loaded, Record("x", None, None, tuple(Message(*m) for m in messages)))
    finally:
        loaded.tokenizer.chat_template = known
    return caught.value


def test_a_template_that_refuses_a_role_is_quoted_and_the_way_out_named(
    folders: dict[str, Path],
) -> None:
    turns = ("system", "SECRET"), ("user", "SECRET"), ("assistant", "SECRET")
    error = said(folders["causal"], GEMMA, *turns)
    assert "System role not supported" in error.message
    assert "'system'" in error.hint
    assert "next message" in error.hint


def test_a_template_that_wants_turns_to_alternate_says_so(folders: dict[str, Path]) -> None:
    turns = ("user", "SECRET"), ("user", "SECRET"), ("assistant", "SECRET")
    error = said(folders["causal"], GEMMA, *turns)
    assert "Roles must alternate" in error.message
    assert "Join messages" in error.hint


@pytest.mark.parametrize("role", ["user", "SECRET"])
def test_a_template_that_quotes_a_record_is_not_quoted(folders: dict[str, Path], role: str) -> None:
    error = said(folders["causal"], QUOTING, (role, "SECRET"), ("assistant", "SECRET"))
    assert "SECRET" not in str(error)
