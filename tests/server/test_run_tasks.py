"""Every task from a run config to a report, an answer, and a model for plain transformers."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from confide.__main__ import build_app
from confide.client.guard.contract import check_contract
from confide.client.text.check_data import check_data, misfits, propose_contract
from confide.common.errors import ConfideError
from confide.common.metrics import compute
from confide.common.models import loading as models
from confide.common.models.batches import EncodedText, forward
from confide.common.tasks import TASKS
from confide.common.tasks.task import TEXTS as TEXTS_OF_THE_CARD
from confide.common.text.readers import Record
from confide.server.card import model_class
from confide.server.explain import TOLERANCE, explain
from confide.server.predict import evaluate_run, export_merged, open_run, predict
from confide.server.run import run
from confide.server.run_folder import RunFolder
from confide.simulations import yardsticks
from confide.simulations.doctor import diagnose
from confide.simulations.ready import agreed_by
from tests import tiny
from tests.server import federated

TEXTS = {"masked": "the [MASK] was fine", "spans": "the <extra_id_0> was"}
METRICS = {
    "classification": "accuracy",
    "multilabel": "micro-f1",
    "regression": "pearson",
    "seq2seq": "rougeL",
    "causal": "perplexity",
    "prompt": "perplexity",
    "chat": "perplexity",
    "masked": "perplexity",
    "spans": "perplexity",
}


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """The run of a task, made once."""
    known: dict[str, RunFolder] = {}

    def finished(task: str) -> RunFolder:
        if task not in known:
            folder = tmp_path_factory.mktemp(f"run-{task}")
            model = tiny.save_task_model(folder / "model", task)
            data = tiny.save_task_federation(folder / "data", task)
            config = federated.config(
                model, data, folder / "runs", round__count=2, **tiny.TASKS[task]
            )
            members = federated.holders(data, folder / "ledgers")
            known[task] = run(config, federated.Transport(members))
        return known[task]

    return finished


@pytest.fixture(autouse=True)
def fresh_models() -> Iterator[None]:
    models._load.cache_clear()
    yield
    models._load.cache_clear()


Done = Callable[[str], RunFolder]


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_federated_run_ends_with_a_report(done: Done, task: str) -> None:
    folder = done(task)
    report = json.loads((folder.path / "report.json").read_text())
    utility = report["utility"]
    assert utility["metric"] == METRICS[task]
    assert utility["before"]["loss"] != utility["after"]["loss"]
    assert utility["after"][METRICS[task]] is not None
    assert all(check["state"] != "failed" for check in report["checks"])
    assert all(len(row["accepted"]) == 2 for row in federated.events(folder, "round"))
    assert (utility["interval"] is not None) == (task == "classification")
    page = (folder.path / "report.html").read_text()
    assert f"{METRICS[task][:1].upper()}" in page


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_run_answers(done: Done, task: str) -> None:
    text = TEXTS.get(task, "the day was")
    (found,) = predict(done(task).path, [text])
    assert isinstance(found.answer, {"regression": float, "multilabel": tuple}.get(task, str))
    if task == "masked":
        assert "[MASK]" not in found.answer
    assert bool(found.probabilities) == (task in ("classification", "multilabel"))


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_score_of_the_last_round_can_be_had_again(done: Done, task: str) -> None:
    folder = done(task)
    last = federated.events(folder, "evaluation")[-1]
    for file in (None, folder.path.parent.parent / "data" / "public.jsonl"):
        score = evaluate_run(folder.path, file)
        assert score.loss == pytest.approx(last["loss"], abs=1e-5)
        assert score.value == pytest.approx(last[METRICS[task]], abs=1e-4)


def test_text_is_written_before_and_after_a_run_alone(done: Done) -> None:
    told = federated.events(done("seq2seq"), "evaluation")
    assert [(e["round"], e["metric"]) for e in told] == [
        (0, "rougeL"),
        (1, "perplexity"),
        (2, "perplexity"),
        (2, "rougeL"),
    ]
    assert told[2]["loss"] == told[3]["loss"]
    assert all("rougeL" not in e for e in told[1:3])


@pytest.mark.parametrize(
    ("every", "metrics"),
    [
        (1, ["rougeL", "rougeL", "rougeL", "rougeL"]),
        (2, ["rougeL", "perplexity", "rougeL", "perplexity", "rougeL"]),
    ],
)
def test_text_may_be_written_after_every_so_many_rounds(
    tmp_path: Path, every: int, metrics: list[str]
) -> None:
    model = tiny.save_task_model(tmp_path / "model", "seq2seq")
    data = tiny.save_task_federation(tmp_path / "data", "seq2seq")
    changes = {**tiny.TASKS["seq2seq"], "round__count": 3, "round__generate_every": every}
    config = federated.config(model, data, tmp_path / "runs", **changes)
    folder = run(config, federated.Transport(federated.holders(data, tmp_path / "ledgers")))
    told = federated.events(folder, "evaluation")
    assert [e["metric"] for e in told] == metrics
    assert [e["round"] for e in told] == [0, 1, 2, 3, 3][: len(told)]
    utility = json.loads((folder.path / "report.json").read_text())["utility"]
    shown = [p["round"] for p in utility["rounds"] if p["rougeL"] is not None]
    assert shown == {1: [0, 1, 2, 3], 2: [0, 2, 3]}[every]


def test_a_metric_of_which_less_is_better_goes_from_a_run_to_its_report(tmp_path: Path) -> None:
    model = tiny.save_task_model(tmp_path / "model", "seq2seq")
    data = tiny.save_task_federation(tmp_path / "data", "seq2seq")
    settings = {**tiny.TASKS["seq2seq"], "task__metric": "token-error"}
    config = federated.config(model, data, tmp_path / "runs", round__count=1, **settings)
    members = federated.holders(data, tmp_path / "ledgers")
    folder = run(config, federated.Transport(members))
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    assert report["utility"]["metric"] == "token-error"
    assert report["utility"]["after"]["token-error"] > 0.0
    assert "less is better" in (folder.path / "report.html").read_text(encoding="utf-8")


def hidden_words(loaded: Any) -> Any:
    """One batch of the task, as it is trained."""
    task = loaded.task
    records = [Record("the people of the town"), Record("a day")]
    if task.by_logits or task.spec.kind == "seq2seq":
        words = {"classification": "positive", "multilabel": "town,grim", "regression": "0.5"}
        target = words.get(task.spec.kind, "warm")
        records = [Record(r.text, target) for r in records]
    elif task.spec.template == "chat":
        records = [Record(r.text, "warm") for r in records]
    examples = task.encode(records, loaded.tokenizer, loaded.max_length)
    generator = torch.Generator().manual_seed(1)
    drawn = [task.redraw(e, loaded, generator) for e in examples]
    return EncodedText(drawn, loaded).together([0, 1])


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_merged_model_is_the_same_in_plain_transformers(
    done: Done, task: str, tmp_path: Path
) -> None:
    folder = done(task).path
    export_merged(folder, tmp_path / "merged")
    settings, loaded = open_run(folder)
    auto = getattr(transformers, model_class(settings.to_flat()))
    plain, info = auto.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    mean = model_class(settings.to_flat()) == "AutoModelForTokenClassification"
    spoilt = {"bert.pooler.dense.weight"} if mean else set()  # see tests/server/test_one_liners.py
    assert set(info["unexpected_keys"]) == spoilt
    frozen = loaded.trunk.frozen
    loaded.trunk.frozen = 0  # the whole model in one go
    batch = hidden_words(loaded)
    loaded.trunk.frozen = frozen
    with torch.no_grad():
        mine = forward(loaded, loaded.task, batch)
        output = plain.eval()(**batch.inputs, attention_mask=batch.attention_mask)
        theirs = loaded.task.logits(output, batch.attention_mask)
        if batch.places is not None:
            theirs = torch.stack([x[at] for x, at in zip(theirs, batch.places, strict=True)])
    assert torch.allclose(mine, theirs, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("the day")["input_ids"] == loaded.tokenizer("the day")["input_ids"]


def code_of(text: str) -> str:
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "adapter"])
@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_code_of_the_card_runs(
    done: Done,
    task: str,
    merged: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = done(task).path / "adapter"
    if merged:
        folder = tmp_path / "merged"
        export_merged(done(task).path, folder)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = code_of((folder / "README.md").read_text())
        model = str(done(task).path.parent.parent / "model")  # a card names no folder
        exec(code.replace('base = "model"', f"base = {model!r}"), {})  # noqa: S102 - our own text
    assert capsys.readouterr().out.strip() or task in ("prompt", "chat", "seq2seq", "spans")


def test_a_folder_that_is_there_is_never_overwritten(done: Done, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ConfideError, match=r"export\.folder"):
        export_merged(done("classification").path, tmp_path)


def test_the_model_in_memory_keeps_its_adapter_apart(done: Done, tmp_path: Path) -> None:
    folder = done("classification").path
    before = predict(folder, ["the day was fine"])
    export_merged(folder, tmp_path / "merged")
    assert predict(folder, ["the day was fine"]) == before


@pytest.mark.parametrize(
    ("task", "text", "code"),
    [
        ("seq2seq", "the day " * 20, "data.too-long"),
        ("prompt", "the day " * 40, "data.too-long"),
        ("masked", "[MASK] day " * 40, "data.too-long"),
        ("spans", "the day " * 20, "data.too-long"),
        ("masked", "the day", "data.no-mask"),
        ("causal", " ", "data.empty"),
    ],
)
def test_a_text_that_cannot_be_answered_is_named_by_its_number(
    done: Done, task: str, text: str, code: str
) -> None:
    fine = TEXTS.get(task, "the day was")
    with pytest.raises(ConfideError) as caught:
        predict(done(task).path, [fine, text])
    assert caught.value.code == code
    assert "Text 2" in caught.value.message
    assert "day" not in str(caught.value)


@pytest.mark.parametrize("task", ["seq2seq", "causal", "prompt", "chat", "spans"])
def test_what_is_written_does_not_depend_on_the_other_texts(done: Done, task: str) -> None:
    texts = ["the day was", "a house in the town of people and its street", "fine"]
    if task == "spans":
        texts = [f"{text} <extra_id_0>" for text in texts]
    together = predict(done(task).path, texts)
    assert together == [predict(done(task).path, [text])[0] for text in texts]


@pytest.mark.parametrize("unit", ["record", "person"])
def test_imbalance_options_and_adamw_train_in_local_steps(
    tiny_model: Path, tiny_federation: Path, tmp_path: Path, unit: str
) -> None:
    changes = {
        "task__class_weights": "1,3",
        "task__class_rates": "0.5,1",
        "task__loss": "focal",
        "task__word_dropout": 0.2,
        "task__copies": 3,
        "train__optimizer": "adamw",
        "train__weight_decay": 0.1,
        "train__lr": 0.01,
        "train__steps": 2,
        "round__mode": "steps",
        "privacy__unit": unit,
        "data__person": "person",
    }
    config = federated.config(tiny_model, tiny_federation, tmp_path / "runs", **changes)
    folder = run(config, federated.Transport(federated.holders(tiny_federation, tmp_path / "l")))
    report = json.loads((folder.path / "report.json").read_text())
    assert all(check["state"] != "failed" for check in report["checks"])
    assert {row["events"][0]["steps"] for row in report["holders"]} == {4}


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_merged_export_goes_on_where_its_run_ended(done: Done, task: str, tmp_path: Path) -> None:
    """peft#577: the next run's base had a trained head for the same labels, which was zeroed."""
    first = done(task)
    export_merged(first.path, tmp_path / "merged")
    data = first.path.parent.parent / "data"
    config = federated.config(
        tmp_path / "merged", data, tmp_path / "runs", round__count=1, **tiny.TASKS[task]
    )
    config["task.labels"] = ",".join(reversed(config["task.labels"].split(",")))
    second = run(config, federated.Transport(federated.holders(data, tmp_path / "ledgers")))
    ended = federated.events(first, "evaluation")[-1]
    begun = federated.events(second, "evaluation")[0]
    assert begun["loss"] == pytest.approx(ended["loss"], abs=1e-5)
    report = json.loads((second.path / "report.json").read_text())
    assert report["run"]["model"]["head"] == "The head is the base model's own for these labels."
    assert "own for these labels" in (second.path / "report.html").read_text()
    new = json.loads((first.path / "report.json").read_text())["run"]["model"]["head"]
    assert "starts at zero" in new


# A contract for every kind of task: whoever adds one gives it a row in tests/tiny.py.


def commanded(*arguments: object) -> str:
    seen = CliRunner().invoke(build_app(), list(map(str, arguments)), catch_exceptions=False)
    assert seen.exit_code == 0, seen.output
    return seen.output


def public_of(folder: RunFolder) -> Path:
    return folder.path.parent.parent / "data" / "public.jsonl"


def test_every_kind_is_tried() -> None:
    """HOUSE finding 4: of a new task nothing said that its card and its answers were wrong."""
    assert {told.get("task__kind", "classification") for told in tiny.TASKS.values()} == set(TASKS)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_command_line_answers(done: Done, task: str) -> None:
    folder, text = done(task).path, TEXTS.get(task, "the day was")
    (found,) = predict(folder, [text])
    shown, told = commanded("predict", folder, text), commanded("predict", folder, text, "--json")
    chances = json.loads(told).get("probabilities", {})
    assert chances == found.probabilities
    assert all(f"{chance:.2f}" in shown for chance in chances.values()) or task == "classification"
    said = [found.answer] if isinstance(found.answer, str) else []
    assert all(word in shown for word in said), shown
    assert json.loads(commanded("evaluate", folder, "--json"))["metric"] == METRICS[task]


@pytest.mark.parametrize("task", tiny.TASKS)
def test_words_are_weighed_of_answers_that_can_be(done: Done, task: str) -> None:
    folder, text = done(task).path, TEXTS.get(task, "the day was")
    kind = tiny.TASKS[task].get("task__kind", "classification")
    if not TASKS[kind].explains:
        with pytest.raises(ConfideError, match=r"explain\.task"):
            explain(folder, text)
        return
    found, (predicted,) = explain(folder, text), predict(folder, [text])
    answer = predicted.answer
    assert found.answer == (answer if isinstance(answer, str) else ", ".join(answer) or "none")
    assert found.words == tuple(open_run(folder)[1].task.asked(text).split())
    assert found.gap <= TOLERANCE * max(abs(found.score - found.baseline), 1e-3) * 1.01


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "adapter"])
@pytest.mark.parametrize(
    "task", [t for t in tiny.TASKS if t not in ("masked", "spans")]
)  # whose cards show one text of their own
def test_the_code_of_the_card_gives_the_answers_that_are_scored(
    done: Done,
    task: str,
    merged: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_folder = done(task)
    folder = run_folder.path / "adapter"
    if merged:
        folder = tmp_path / "merged"
        export_merged(run_folder.path, folder)
    rows = [json.loads(line) for line in public_of(run_folder).read_text().splitlines()]
    language = TASKS[tiny.TASKS[task].get("task__kind", "classification")].language
    texts = [" ".join(row["text"].split()[: 4 if language else None]) for row in rows]
    code = code_of((folder / "README.md").read_text())
    assert code.count(TEXTS_OF_THE_CARD) == 1
    code = code.replace(TEXTS_OF_THE_CARD, repr(texts))
    code = code.replace('base = "model"', f"base = {str(run_folder.path.parents[1] / 'model')!r}")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, {})  # noqa: S102 - our own text
    out = capsys.readouterr().out
    answers = [found.answer for found in predict(run_folder.path, texts)]
    if not language:
        printed = ast.literal_eval(out.strip())
        wanted = [list(one) if isinstance(one, tuple) else one for one in answers]
        near = pytest.approx(wanted, abs=1e-4) if task == "regression" else wanted
        assert printed == near
        scored = evaluate_run(run_folder.path).metrics
        assert compute(METRICS[task], *compared(task, printed, rows)) == pytest.approx(
            scored[METRICS[task]], abs=1e-4
        )
    else:
        # Plain transformers does not stop at [SEP], by which the tiny decoders end a text.
        shown = [line.strip() for line in out.splitlines()]
        assert len(shown) == len(answers)
        assert all(one.startswith(two) for one, two in zip(shown, answers, strict=True))
        assert any(shown) or task != "causal"


def compared(task: str, printed: list[Any], rows: list[dict[str, Any]]) -> tuple[list[Any], ...]:
    """What the card's code printed, and the right answers, as the metric compares them."""
    right = [row["label"] for row in rows]
    if task == "multilabel":
        names = tiny.TASKS[task]["task__labels"].split(",")
        return tuple([tuple(int(n in one) for n in names) for one in x] for x in (printed, right))
    return (printed, right) if task == "classification" else (printed, list(map(float, right)))


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_holders_file_is_proposed_counted_and_agreed(done: Done, task: str) -> None:
    folder = done(task)
    settings, _ = open_run(folder.path)
    file = public_of(folder)
    kind, agreed = settings.task.kind, agreed_by(settings)
    if task != "chat":  # whose rows are pairs here, not conversations
        assert misfits(file, agreed) == []
        assert check_data(file, contract=agreed).unfit == 0
    agreed.check(settings)
    check_contract(agreed)
    said = propose_contract(file, label=settings.data.target)
    if task not in ("seq2seq", "prompt", "chat"):  # a few equal answers look like classes
        assert kind in said.tasks


@pytest.mark.parametrize("task", tiny.TASKS)
def test_doctor_and_yardsticks_know_the_task(done: Done, task: str) -> None:
    folder = done(task)
    assert diagnose(str(folder.path)).subject.endswith(folder.path.name)
    settings, _ = open_run(folder.path)
    rows = yardsticks._without_a_model(public_of(folder).parent, settings)
    assert bool(rows) == (task in ("classification", "multilabel"))
    assert all(0 <= row[METRICS[task]] <= 1 for row in rows)
