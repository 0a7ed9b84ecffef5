from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    PreTrainedTokenizerFast,
)

from confide.common.machine.paths import public_name
from confide.common.settings import from_flat
from confide.common.tasks.task import literal
from confide.server.card import model_card, terms_of
from confide.server.report import SCHEMA

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
LABELS = ["negative", "positive"]
WORDS = ["[PAD]", "[UNK]", "The", "first", "text", ".", "Another"]


def report(base: str = HUB_ID, pooling: str = "mean", **claim: object) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "claim": {
            "private": True,
            "sentence": "At most epsilon = 8.00.",
            "in_plain_words": "Few are found.",
            "unit": "record",
            "neighbouring": "add-or-remove-one",
            "epsilon": 7.991,
            "delta": 1e-5,
            "adversary": "everyone",
            "computational": "It is computational.",
            "proven_by": ["By the whole plan."],
        }
        | claim,
        "run": {"name": "editorials", "rounds": 20, "holders": 10, "model": {"name": base}},
        "utility": {
            "metric": "accuracy",
            "before": {"accuracy": 0.57},
            "after": {"accuracy": 0.827},
            "interval": [0.788, 0.86],
            "examples": 418,
            "yardsticks": [{"name": "a | b", "accuracy": 0.65, "epsilon": None}],
        },
        "not_protected": [{"what": "Facts shared by many", "why": "An adapter may learn them."}],
        "settings": {
            **from_flat({"model.name": base, "task.labels": "a,b"}).to_flat(),
            "task.labels": "negative,positive",
            "task.pooling": pooling,
            "train.max-length": 128,
        },
    }


def front_matter(card: str) -> str:
    return card.split("---\n")[1]


def code_of(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_front_matter_says_what_the_hub_asks_for() -> None:
    """As ``huggingface_hub`` reads it, whose rules ``ModelCard.validate`` asks the Hub for."""
    told = report()
    told["run"]["model"] |= {"license": "apache-2.0", "language": ["en"]}
    data = ModelCard(model_card(told)).data
    assert (data.base_model, data.base_model_relation) == (HUB_ID, "adapter")
    assert (data.library_name, data.license, data.language) == ("peft", "apache-2.0", ["en"])
    assert "differential-privacy" in data.tags
    assert data.datasets is None
    assert data.metrics == ["accuracy"]
    assert data.model_name == "editorials"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.827)
    assert result.task_type == "text-classification"
    assert result.dataset_name == "the coordinator's held-out text"


@pytest.mark.parametrize(
    ("kind", "tag"), [("classification", None), ("causal", "text-generation"), ("spans", None)]
)
def test_a_pipeline_is_claimed_where_it_works(kind: str, tag: str | None) -> None:
    told = report()
    told["settings"]["task.kind"] = kind
    assert ModelCard(model_card(told)).data.pipeline_tag == tag


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_none_is_no_result(value: float | None) -> None:
    told = report()
    told["utility"]["after"]["accuracy"] = value
    data = ModelCard(model_card(told)).data
    assert data.eval_results is None
    assert data.metrics is None


def test_terms_are_those_of_the_base_models_card(tmp_path: Path) -> None:
    def terms(head: str) -> dict[str, Any]:
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A base\n", encoding="utf-8")
        return terms_of(tmp_path)

    assert terms("license: mit\nlanguage: [en, de]") == {"license": "mit", "language": ["en", "de"]}
    assert terms("license: '<b>'\nlanguage: 3") == {}
    assert terms("license: [mit]\nlanguage: ['x](y)', fr]") == {"language": ["fr"]}
    for broken in ("a: [", "- list", "license: !!python/object:os.system x"):
        assert terms(broken) == {}, broken
    assert terms_of(None) == {}
    assert terms_of(tmp_path / "nowhere") == {}


def test_a_folder_is_no_base_model_of_the_hub() -> None:
    """MiniCPM#362: the card named a base that nobody else has."""
    for name in ("my-model", "../base", "./base", "~/base"):
        card = model_card(report(base=name))
        assert ModelCard(card).data.base_model is None
        assert "base_model_relation" not in ModelCard(card).data.to_dict()
        assert "by hand: as `base_model_name_or_path` in adapter_config.json" in card
    assert "by hand" not in model_card(report())


def test_a_folder_is_known_by_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("/home/ana/models/base", "~/models/base/", "models/base", "C:\\ana\\base", "base"):
        (tmp_path / "models" / "base").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path)
        assert public_name(name) == "base", name
    assert public_name(HUB_ID) == HUB_ID


def test_the_card_promises_what_the_report_does_and_no_more() -> None:
    card = model_card(report())
    assert "At most epsilon = 8.00." in card
    assert "epsilon 8.00 at delta = 1 in 100,000 (1e-05)" in card
    assert "It is computational." in card
    assert "By the whole plan." in card
    assert "82.7 %" in card
    assert "a &#124; b" in card
    assert "Facts shared by many" in card
    withdrawn = model_card(
        report(private=False, epsilon=None, sentence="NOT DIFFERENTIALLY PRIVATE. No noise.")
    )
    assert "**NOT DIFFERENTIALLY PRIVATE." in withdrawn
    assert "- differential-privacy" not in front_matter(withdrawn)
    assert "at delta" not in withdrawn


def test_the_card_names_the_unit() -> None:
    assert "- unit: one record;" in model_card(report())
    assert "- unit: one person;" in model_card(report(unit="person"))


def test_no_name_breaks_out_of_its_place() -> None:
    hostile = report(base='x"\n---\n<script>`')
    hostile["run"]["name"] = "<img>\n# other"
    card = model_card(hostile)
    assert "<img" not in card
    assert "\n# other" not in card
    assert card.count("\n---\n") == 1
    compile(code_of(card), "card", "exec")


HOSTILE = (
    "<script>x</script> [go](javascript:alert(1)) ![i](http://e.vil) \x1b[2J\u202e | ``` # & -- y"
)


def poisoned(value: Any) -> Any:
    """Every word replaced, but those by which the card is made."""
    if isinstance(value, dict):
        kept = ("schema", "metric", "task.kind", "task.pooling", "task.template")
        return {k: v if k in kept else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def test_no_word_from_elsewhere_means_anything_in_the_card() -> None:
    card = model_card(poisoned(report()))
    outside = card.replace(code_of(card), "")
    for wrong in ("<script", "](", "javascript:", "http:", "\x1b", "\u202e"):
        assert wrong not in outside, wrong
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", card)
    assert card.count("```") == 2
    assert card.count("\n---\n") == 1
    assert yaml.safe_load(front_matter(card))["library_name"] == "peft"
    compile(code_of(card), "card", "exec")


def test_a_name_in_the_code_is_the_name_and_nothing_else() -> None:
    for name in (HOSTILE, "über", "a\nb", "\U000e0001"):
        assert eval(literal(name)) == name or "\U000e0001" in name  # noqa: S307 - our own text
        assert json.loads(literal(name)) == name
        assert literal(name).isprintable()


# peft 0.21 asks transformers 5.23 by a name that is going away.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_the_code_of_the_card_loads_the_adapter_and_predicts(
    pooling: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    kind = (
        AutoModelForTokenClassification if pooling == "mean" else AutoModelForSequenceClassification
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=len(LABELS),
    )
    model = kind.from_config(config)
    model.save_pretrained(base)
    words = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(base)
    task = TaskType.TOKEN_CLS if pooling == "mean" else TaskType.SEQ_CLS
    get_peft_model(model, LoraConfig(task_type=task, r=2)).save_pretrained(adapter)
    monkeypatch.chdir(adapter)
    exec(code_of(model_card(report(str(base), pooling))), {})  # noqa: S102 - our own text
    shown = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(r"\['(negative|positive)', '(negative|positive)'\]", shown)
