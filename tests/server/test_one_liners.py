"""Promise 39: what people load with Hugging Face's own calls gives the answers of ``confide
evaluate`` and ``confide predict``, or an exception. FAULTS M10: a pooled adapter in ``pipeline``
said LABEL_0 for every text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from confide.common.models.batches import EncodedText
from confide.common.models.loading import forget_models
from confide.common.text.readers import read_records
from confide.server.predict import evaluate_run, export_merged, open_run, predict
from confide.server.run import run
from tests import tiny, warm
from tests.server import federated, one_liners

CASES = ("classification", "model", "three", "regression", "regression-model")
CASES += ("multilabel", "multilabel-model")
CASES += (
    "seq2seq",
    "causal",
    "prompt",
    "chat",
    "masked",
    "spans",
)
FAMILIES = ("roberta", "distilbert", "gpt2")
OF = {"model": "classification", "three": "classification", "regression-model": "regression"}
OF |= {"multilabel-model": "multilabel"}
SAME = 1e-5
# What works, the rest raises: by kind, calls of ``one_liners``.
MEAN = {
    "TokenClassification(merged)",
    "TokenClassification + PeftModel",
    "TokenClassification + load_adapter",
}
HEAD = {name.replace("Token", "Sequence") for name in MEAN} | {"text-classification(merged)"}
SENTIMENT = {"sentiment-analysis(merged)"}


def written(end: str) -> set[str]:
    calls = ("(adapter)", "(adapter, labels)", "(merged)", " + PeftModel", " + load_adapter")
    return {f"{end}{call}" for call in calls}


CAUSAL = {
    *written("CausalLM"),
    "PeftCausalLM(adapter)",
    "text-generation(adapter)",
    "text-generation(merged)",
}
SPANS = {*written("Seq2SeqLM"), "PeftSeq2SeqLM(adapter)"}
WORKS: Mapping[str, set[str]] = {
    "classification": {*MEAN, "PeftTokenClassification(adapter)"},
    "three": MEAN,
    "regression": MEAN,
    "model": {*HEAD, *SENTIMENT, "PeftSequenceClassification(adapter)"},
    "regression-model": HEAD,
    "multilabel": MEAN,
    "multilabel-model": HEAD,
    "seq2seq": SPANS,
    "spans": SPANS,
    "causal": CAUSAL,
    "prompt": CAUSAL,
    "chat": CAUSAL,
    "masked": {
        *written("MaskedLM"),
        "Peft(adapter)",
        "fill-mask(adapter)",
        "fill-mask(merged)",
    },
}
Made = Callable[[str], Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """By case a folder with a finished run (``run``), its merged export, and its base model under
    ``models/tiny/base``, as the cache has one of the Hub."""
    known: dict[str, Path] = {}

    def folder_of(case: str) -> Path:
        if case not in known:
            known[case] = tmp_path_factory.mktemp(f"one-{case}")
            _make(case, known[case])
        return known[case]

    return folder_of


def _make(case: str, folder: Path) -> None:
    task = OF.get(case, "classification" if case in FAMILIES else case)
    base = folder / "models" / "tiny" / "base"
    base.parent.mkdir(parents=True)
    if case in FAMILIES:
        tiny.save_model(base, case)
    else:
        tiny.save_task_model(base, task)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A base\n")
    data = tiny.save_task_federation(folder / "data", task)
    changes = {**tiny.TASKS[task], "round__count": 2, "train__lr": 3.0}
    if case.endswith("model"):
        changes["task__pooling"] = "model"
    if case == "three":
        changes["task__labels"] = "negative,neither,positive"
    config = federated.config(base, data, folder / "runs", **changes)
    config["model.name"] = "tiny/base"
    members = federated.holders(data, folder / "ledgers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_CACHE", str(folder))
        forget_models()
        done = run(config, federated.Transport(members))
        done.path.rename(folder / "run")
        export_merged(folder / "run", folder / "merged")
        _write_job(case, task, folder)


def _write_job(case: str, task: str, folder: Path) -> None:
    """What the calls get, and the right scores by confide."""
    settings, loaded = open_run(folder / "run")
    loaded.trunk.frozen, kept = 0, loaded.trunk.frozen
    target = settings.data.target or None
    lists = loaded.task.lists
    records = read_records(folder / "data" / "public.jsonl", target=target, lists=lists)
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for batch in EncodedText(examples, loaded).batches(draws=lambda _: generator):
        inputs = {**batch.inputs, "attention_mask": batch.attention_mask}
        with torch.no_grad():
            output = loaded.model(**inputs)
        pooled = loaded.task.by_logits
        scores = loaded.task.logits(output, batch.attention_mask) if pooled else output.logits
        pairs.append((inputs, scores))
    loaded.trunk.frozen = kept
    torch.save(pairs, folder / "batches.pt")
    kind = settings.task.kind
    texts = ["the [MASK] was fine"] if kind == "masked" else [r.text for r in records]
    job = {
        "kind": kind,
        "own_head": pooled and settings.task.pooling == "model",
        "labels": list(settings.task.label_names) or ["value"],
        "texts": texts,
        "base": "tiny/base",
        "adapter": str(folder / "run" / "adapter"),
        "merged": str(folder / "merged"),
        "batches": str(folder / "batches.pt"),
        "right": [p.answer for p in predict(folder / "run", texts)] if pooled else [],
        "chances": [p.probabilities for p in predict(folder / "run", texts)] if pooled else [],
    }
    (folder / "job.json").write_text(json.dumps(job))


@pytest.fixture
def place(
    request: pytest.FixtureRequest, made: Made, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """A case and its folder, where ``tiny/base`` is found as on a Hub that can be reached."""
    folder = made(request.param)
    forget_models()  # all of them are called tiny/base
    monkeypatch.setenv("CONFIDE_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(folder / "models")
    return request.param, folder


def judged(found: Mapping[str, Any], job: Mapping[str, Any]) -> set[str]:
    """The calls that work; each is right."""
    works = {name for name, told in found.items() if "error" not in told}
    for name in works:
        told = found[name]
        assert told.get("diff", 0.0) < SAME, (name, told)
        if job["kind"] == "classification" and "said" in told:
            assert [one["label"] for one in told["said"]] == job["right"], name
        elif job["kind"] == "multilabel" and "said" in told:
            for one, chances in zip(told["said"], job["chances"], strict=True):
                assert one["label"] == max(chances, key=chances.get), name
                assert one["score"] == pytest.approx(chances[one["label"]], abs=SAME), name
        elif job["kind"] == "regression" and "said" in told:
            assert [one["score"] for one in told["said"]] == pytest.approx(job["right"], abs=SAME)
    return works


@pytest.mark.parametrize("with_confide", [True, False], ids=["with", "without"])
@pytest.mark.parametrize("place", CASES, indirect=True)
def test_every_call_gives_the_answers_of_confide_or_raises(
    place: tuple[str, Path], with_confide: bool, tmp_path: Path
) -> None:
    case, folder = place
    job = json.loads((folder / "job.json").read_text())
    if with_confide:
        found = one_liners.outcomes(job)
    else:
        code = Path(one_liners.__file__).read_text(encoding="utf-8")
        out = tmp_path / "out.json"
        done = warm.run(code, folder / "job.json", out, cwd=folder / "models")
        assert done.returncode == 0, done.stderr
        found = json.loads(out.read_text())
    assert judged(found, job) == WORKS[case]


@pytest.mark.parametrize("place", FAMILIES, indirect=True)
def test_no_family_reads_a_mean_with_its_text_classifier(place: tuple[str, Path]) -> None:
    _, folder = place
    job = json.loads((folder / "job.json").read_text())
    found = one_liners.outcomes(job)
    # By hand, and of the wrong class: transformers reports the head's weights as missing.
    del found["SequenceClassification + load_adapter"]
    assert judged(found, job) == {*MEAN, "PeftTokenClassification(adapter)"}


@pytest.mark.parametrize("place", ["classification", "model"], indirect=True)
def test_the_right_scores_are_those_of_evaluate(place: tuple[str, Path]) -> None:
    """And the model has learnt something, so that one label for all texts would show."""
    _, folder = place
    job = json.loads((folder / "job.json").read_text())
    rows = [json.loads(x) for x in (folder / "data" / "public.jsonl").read_text().splitlines()]
    hit = [row["label"] == said for row, said in zip(rows, job["right"], strict=True)]
    assert evaluate_run(folder / "run").metrics["accuracy"] == sum(hit) / len(hit)


@pytest.mark.parametrize("place", ["classification", "model", "three", "multilabel"], indirect=True)
def test_labels_keep_their_names(place: tuple[str, Path]) -> None:
    _, folder = place
    names = dict(enumerate(json.loads((folder / "job.json").read_text())["labels"]))
    for where in ("run/adapter", "merged"):
        config = transformers.AutoConfig.from_pretrained(folder / where)
        assert config.id2label == names
        assert config.label2id == {name: number for number, name in names.items()}


@pytest.mark.parametrize("place", CASES, indirect=True)
def test_the_cards_claim_the_calls_that_work(place: tuple[str, Path]) -> None:
    case, folder = place
    for where, call, relation in (
        ("run/adapter", "(adapter)", "adapter"),
        ("merged", "(merged)", "finetune"),
    ):
        data = ModelCard.load(folder / where / "README.md").data
        works = {name.removesuffix(call) for name in WORKS[case] if name.endswith(call)}
        tasks = {name for name in works - {"sentiment-analysis"} if name[0].islower()}
        assert {data.pipeline_tag} == (tasks or {None})
        assert (data.base_model, data.base_model_relation) == ("tiny/base", relation)
    card = ModelCard.load(folder / "run" / "adapter" / "README.md").data
    assert (card.license, card.language) == ("apache-2.0", ["en"])


def test_no_path_of_this_machine_is_published(tmp_path: Path) -> None:
    """MiniCPM#362: adapter_config.json had the folder that the base was trained from."""
    base = tiny.save_model(tmp_path / "home" / "ana" / "models" / "base")
    data = tiny.save_federation(tmp_path / "data", records=8)
    config = federated.config(base, data, tmp_path / "runs", round__count=1)
    done = run(config, federated.Transport(federated.holders(data, tmp_path / "ledgers")))
    export_merged(done.path, tmp_path / "merged")
    for folder in (done.path / "adapter", tmp_path / "merged"):
        for file in folder.iterdir():
            assert b"/ana" not in file.read_bytes(), file
        card = (folder / "README.md").read_text()
        assert "by hand" in card
        assert ModelCard(card).data.base_model is None
    told = json.loads((done.path / "adapter" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "base"
    assert "`base`" in (done.path / "adapter" / "README.md").read_text()
