"""Explanations: the shares add up (completeness), belong to whole words, and are told in signs."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.common.adapter.schema import save_adapter
from confide.common.errors import ConfideError
from confide.common.models.loading import load_model
from confide.common.settings import TaskSpec, from_flat
from confide.common.tasks import task_for
from confide.common.tasks.classification import Classification
from confide.server import explain as module
from confide.server.explain import (
    TOLERANCE,
    Explanation,
    explain,
    explained,
    marked,
    render,
    summary,
    terminal,
)
from confide.server.predict import open_run, predict
from confide.server.run import run
from confide.server.run_folder import RunFolder
from confide.simulations.inprocess import federation
from tests import tiny

TEXT = "the lovely town was cruel and cold"
LABELS = ("negative", "positive")


def complete(found: Explanation) -> bool:
    difference = found.score - found.baseline
    off = abs(sum(found.shares) - difference)
    assert off == pytest.approx(found.gap, abs=1e-6)
    return difference != 0.0 and off <= TOLERANCE * abs(difference)


@pytest.fixture(scope="module")
def run_folder(
    tiny_model: Path, tiny_federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of one round without noise."""
    out = tmp_path_factory.mktemp("explained")
    config = tiny.config(tiny_model, tiny_federation, out, round__count=1, train__lr=4.0)
    config |= {"privacy.trust": "off", "privacy.clip": 10.0}
    files = sorted(tiny_federation.glob("holder-*.jsonl"))
    return run(config, federation(files, out / "ledgers")).path


def strengthen(loaded: Any) -> None:
    """As after training: a head that is not zero, and weights that make words matter."""
    torch.manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.normal_(std=0.5)
        elif parameter.ndim > 1 and "lora" not in name:
            parameter.data.mul_(10)


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "model"),
        ("distilbert", "model"),
        ("llama", "model"),
        ("gpt2", "mean"),
    ],
)
def test_the_shares_add_up_for_every_pooling_and_family(
    kind: str, pooling: str, tmp_path: Path
) -> None:
    model = tiny.save_model(tmp_path, kind)
    settings = from_flat(tiny.config(model, tmp_path, tmp_path, task__pooling=pooling))
    loaded, task = load_model(settings), task_for(settings.task)
    strengthen(loaded)
    found = explained(task, loaded, TEXT)
    assert complete(found)
    assert max(map(abs, found.shares)) > 0.01
    assert found.words == tuple(TEXT.split())
    with torch.no_grad():
        encoded = loaded.tokenizer(TEXT, return_tensors="pt")
        output = loaded.model(**{k: encoded[k] for k in ("input_ids", "attention_mask")})
        negative, positive = task.logits(output, encoded["attention_mask"])[0].tolist()
    assert found.answer == LABELS[positive > negative]
    assert found.score == pytest.approx(abs(positive - negative), abs=1e-5)


class _Linear(nn.Module):
    """A model whose every logit is a sum over tokens: the shares are known without integrating."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(size, 8), nn.Linear(8, 3)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(inputs_embeds).sum(1)  # type: ignore[no-any-return]


class _OfSums(Classification):
    def logits(self, output: Any, attention_mask: Tensor) -> Tensor:
        return output[:, :2]  # type: ignore[no-any-return]


def test_shares_of_a_sum_over_tokens_by_hand(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    model = _Linear(len(tokenizer))
    # Two labels alone, so that the log-odds are a difference of two sums.
    place: Any = SimpleNamespace(model=model, tokenizer=tokenizer, max_length=32)
    found = explained(_OfSums(TaskSpec(labels=",".join(LABELS))), place, TEXT)
    chosen = LABELS.index(found.answer)
    weight = (model.head.weight[chosen] - model.head.weight[1 - chosen]).detach()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    table = model.table.weight.detach()
    expected = [float((table[i] - table.mean(0)) @ weight) for i in ids]
    assert found.shares == pytest.approx(expected, abs=1e-5)
    task = _OfSums(TaskSpec(labels=",".join(LABELS)))
    together = explained(task, place, "the lovely,cold town")
    ids = tokenizer("the lovely,cold town", add_special_tokens=False)["input_ids"]
    by_token = [float((table[i] - table.mean(0)) @ weight) for i in ids]
    turned = 1 if together.answer == found.answer else -1
    expected = [turned * sum(part) for part in (by_token[:1], by_token[1:4], by_token[4:])]
    assert together.words == ("the", "lovely,cold", "town")
    assert together.shares == pytest.approx(expected, abs=1e-5)


def test_a_run_is_explained_by_the_answer_that_it_predicts(run_folder: Path) -> None:
    found, (predicted,) = explain(run_folder, TEXT), predict(run_folder, [TEXT])
    assert complete(found)
    assert found.answer == predicted.answer
    assert predicted.probabilities
    odds = predicted.probabilities[found.answer]
    assert found.score == pytest.approx(math.log(odds / (1 - odds)), abs=1e-5)


def seq2seq(folder: Path) -> tuple[Any, Any]:
    import transformers as t

    size = tiny.save_tokenizer(folder)
    torch.manual_seed(1)
    model = t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=size,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=3,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    ).eval()
    return model, t.AutoTokenizer.from_pretrained(str(folder))


def test_the_shares_of_a_written_answer_add_up_to_its_log_probability(tmp_path: Path) -> None:
    model, tokenizer = seq2seq(tmp_path)
    place = SimpleNamespace(model=model, tokenizer=tokenizer, max_length=32)
    found = explained(task_for(TaskSpec(kind="seq2seq", target_length=5)), place, TEXT)
    assert complete(found)
    assert found.words == tuple(TEXT.split())
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    written = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    assert written.shape[1] > 1
    assert found.answer == tokenizer.decode(written[0, 1:], skip_special_tokens=True)
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=written[:, :-1]).logits
    each = logits.log_softmax(-1)[0, range(written.shape[1] - 1), written[0, 1:]]
    assert found.score == pytest.approx(float(each.sum()), abs=1e-4)
    assert max(map(abs, found.shares)) > 0


@pytest.fixture
def beams_folder(tmp_path: Path) -> Path:
    """A run of a T5 with weights that make words matter, whose best of four beams is another
    answer than the greedy one."""
    import transformers as t

    model = tiny.save_task_model(tmp_path / "t5", "seq2seq", seed=3)
    base = t.T5ForConditionalGeneration.from_pretrained(str(model))
    torch.manual_seed(5)
    for parameter in base.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    base.save_pretrained(str(model))
    config = tiny.config(model, tmp_path, tmp_path, **tiny.TASKS["seq2seq"], task__beams=4)
    folder = RunFolder.create(str(tmp_path), "beams")
    folder.write_config(config)
    save_adapter(load_model(from_flat(config)).model, folder.path / "adapter", str(model))
    return folder.path


def test_the_answer_of_several_beams_is_the_one_that_is_explained(beams_folder: Path) -> None:
    found, (predicted,) = explain(beams_folder, TEXT), predict(beams_folder, [TEXT])
    assert found.answer == predicted.answer
    loaded = open_run(beams_folder)[1]
    greedy = explained(task_for(replace(loaded.task.spec, beams=1)), loaded, TEXT)
    assert greedy.answer != found.answer, "one beam would have done"
    assert greedy.score < found.score


class _Pieces:
    """A tokenizer of the fast kind whose tokens are two characters of a word, after a mark."""

    is_fast = True

    def __len__(self) -> int:
        return 100

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        pairs = [(start, min(start + 2, len(text))) for start in range(0, len(text), 2)]
        spans = [(0, 0), *pairs]
        spans = spans[: options.get("max_length", len(spans))]
        special = [int(start == end) for start, end in spans]
        ids = list(range(len(spans)))
        return {"input_ids": ids, "offset_mapping": spans, "special_tokens_mask": special}


def test_tokens_go_to_the_word_that_they_begin_in_or_before() -> None:
    """``un``, ``do``, `` i``, ``t ``, `` n``, ``ow``: the fourth begins inside of ``it``."""
    tokens = module._tokens(_Pieces(), "undo it  now", 100)
    assert tokens.words == ("undo", "it", "now")
    assert tokens.of_word == (None, 0, 0, 1, 1, 2, 2)
    assert not tokens.cut
    cut = module._tokens(_Pieces(), "undo it  now", 4)
    assert (cut.words, cut.of_word, cut.cut) == (("undo", "it"), (None, 0, 0, 1), True)


def test_bytes_that_do_not_know_their_place_are_merged_into_words() -> None:
    from transformers import ByT5Tokenizer

    tokens = module._tokens(ByT5Tokenizer(), "für so", 100)
    assert tokens.words == ("für", "so")
    assert tokens.of_word == (0, 0, 0, 0, 1, 1, 1, None)  # the space goes with the next word


def test_a_blank_text_and_a_task_without_an_answer_are_refused(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfideError, match=r"data\.empty"):
        explain(run_folder, "  ")
    settings = module.run_settings(run_folder)
    masked = replace(settings, task=replace(settings.task, kind="masked"))
    monkeypatch.setattr(module, "run_settings", lambda _: masked)
    with pytest.raises(ConfideError, match=r"explain\.task"):
        explain(run_folder, TEXT)


def test_a_missing_extra_says_what_to_install(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfideError, match=r"extra\.missing.*pip install 'confide\[explain\]'"):
        explain(run_folder, TEXT)


FOUND = Explanation(
    answer="positive",
    measure="log-odds of 'positive'",
    words=("a", "lovely", "<b>cold</b>", "\x1b[31mday"),
    shares=(0.01, 1.5, -0.75, 0.3),
    score=1.25,
    baseline=0.2,
    gap=0.01,
    cut=False,
)


def test_a_sign_stands_beside_every_word_that_matters() -> None:
    assert [share for _, share in marked(FOUND)] == [None, 1.5, -0.75, 0.3]
    shown = terminal(FOUND).plain
    assert "lovely[+1.50]" in shown
    assert "<b>cold</b>[\N{MINUS SIGN}0.75]" in shown
    assert "a " in shown
    assert "\x1b" not in shown
    assert "within 0.010" in summary(FOUND)
    assert "longer" in summary(replace(FOUND, cut=True))
    assert [share for _, share in marked(replace(FOUND, shares=(0.0,) * 4))] == [None] * 4


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_needs_nothing_and_says_every_sign_without_colour() -> None:
    source = render(FOUND)
    parser = _Tags()
    parser.feed(source)
    tags = {tag for tag, _ in parser.seen}
    assert not {"script", "img", "link", "a", "iframe"} & tags
    assert not [1 for _, attributes in parser.seen if {"src", "href", "onload"} & set(attributes)]
    assert "default-src 'none'" in source
    assert not [word for word in ("http:", "https:", "url(", "@import") if word in source]
    looks = [attributes.get("class") for tag, attributes in parser.seen if tag == "b"]
    assert looks == ["for", "against", "for"]
    assert "&lt;b&gt;cold&lt;/b&gt;<small>\N{MINUS SIGN}0.75</small>" in source
    assert "border-bottom-style:dashed" in source


def test_the_command_prints_marks_json_and_a_page(run_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    command = ["explain", str(run_folder), TEXT]
    done = CliRunner().invoke(build_app(), [*command, "--html", str(page)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "add up to the difference within" in done.stdout
    assert "[+" in done.stdout
    assert "Which words drove the answer" in page.read_text(encoding="utf-8")
    told = json.loads(CliRunner().invoke(build_app(), [*command, "--json"]).stdout)
    assert told["words"] == TEXT.split()
    nowhere = CliRunner().invoke(build_app(), [*command, "--html", str(tmp_path)])
    assert isinstance(nowhere.exception, ConfideError)
    assert nowhere.exception.code == "explain.html"
