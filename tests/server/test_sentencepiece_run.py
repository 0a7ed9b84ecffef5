"""A T5 with a SentencePiece tokenizer, as the Hub has it, from a run to plain transformers.

The tokenizer is a model trained on the spot, the folder holds ``spiece.model`` and nothing that was
converted from it, and what is exported is loaded by a process that never heard of confide.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers

from confide.common.text.readers import Record
from confide.server.predict import evaluate_run, export_merged, open_run, predict
from confide.server.run import run
from confide.server.run_folder import RunFolder
from tests import tiny, warm
from tests.server import federated

TEMPLATE = "tone of this: {text}"
TEXTS = ["the day was fine and lovely", "a grim street of the town", "Zürich was kind"]
SENTINELS = 100  # of a T5, behind the pieces

# What anybody does with a folder of the Hub's format.
PLAIN = """
import json, sys
import torch, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1]).eval()
rows = []
for text in json.loads(sys.argv[2]):
    batch = tokenizer(text, return_tensors="pt")
    made = model.generate(**batch, max_new_tokens=12, do_sample=False, num_beams=1)
    with torch.no_grad():
        loss = model(**batch, labels=tokenizer("positive", return_tensors="pt")["input_ids"]).loss
    rows.append({
        "ids": batch["input_ids"][0].tolist(),
        "text": tokenizer.decode(made[0], skip_special_tokens=True).strip(),
        "loss": float(loss),
    })
print(json.dumps({"rows": rows, "confide": "confide" in sys.modules}))
"""


def spiece() -> bytes:
    """A SentencePiece model of the tiny text with T5's special pieces."""
    lines = [TEMPLATE.replace("{text}", row["text"]) for row in tiny.rows(300, seed=7)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, "positive", "negative", *TEXTS]),
        model_writer=written,
        vocab_size=150,
        hard_vocab_limit=False,
        character_coverage=1.0,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 in the Hub's format: config.json, model.safetensors, spiece.model."""
    folder = tmp_path_factory.mktemp("t5") / "model"
    folder.mkdir()
    (folder / "spiece.model").write_bytes(spiece())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    torch.manual_seed(3)
    config = transformers.T5Config(
        vocab_size=pieces.get_piece_size() + SENTINELS,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(str(folder))
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "spiece.model"}
    return folder


@pytest.fixture(scope="module")
def done(model: Path) -> RunFolder:
    """The finished run."""
    place = model.parent
    data = tiny.save_task_federation(place / "data", "seq2seq")
    changes = {**tiny.TASKS["seq2seq"], "task__template": TEMPLATE, "round__count": 2}
    config = federated.config(model, data, place / "runs", **changes)
    return run(config, federated.Transport(federated.holders(data, place / "ledgers")))


def test_the_run_is_whole_and_every_holder_took_part(done: RunFolder) -> None:
    report = json.loads((done.path / "report.json").read_text())
    assert report["utility"]["metric"] == "rougeL"
    assert report["utility"]["before"]["loss"] != report["utility"]["after"]["loss"]
    assert all(check["state"] != "failed" for check in report["checks"])
    assert all(len(row["accepted"]) == 2 for row in federated.events(done, "round"))


def test_the_score_of_the_last_round_can_be_had_again(done: RunFolder) -> None:
    last = federated.events(done, "evaluation")[-1]
    assert evaluate_run(done.path).loss == pytest.approx(last["loss"], abs=1e-5)


def test_the_tokenizer_beside_the_adapter_is_the_models_own(done: RunFolder, model: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model / "spiece.model"))
    saved = transformers.AutoTokenizer.from_pretrained(done.path / "adapter")
    for text in TEXTS:
        assert saved(text)["input_ids"] == [*pieces.encode(text), pieces.eos_id()]


def test_the_merged_model_does_the_same_in_a_process_without_confide(
    done: RunFolder, tmp_path: Path
) -> None:
    export_merged(done.path, tmp_path / "merged")
    prompts = json.dumps([TEMPLATE.replace("{text}", text) for text in TEXTS])
    ran = warm.run(PLAIN, tmp_path / "merged", prompts, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert not told["confide"]
    assert [row["text"] for row in told["rows"]] == [p.answer for p in predict(done.path, TEXTS)]
    _, loaded = open_run(done.path)
    records = [Record(text, "positive") for text in TEXTS]
    examples = loaded.task.encode(records, loaded.tokenizer, loaded.max_length)
    batch = loaded.task.collate(examples, loaded)
    with torch.no_grad():
        output = loaded.model(**batch.inputs, attention_mask=batch.attention_mask)
        losses = loaded.task.losses(loaded.task.logits(output, batch.attention_mask), batch.targets)
    assert [row["ids"] for row in told["rows"]] == [list(e.ids) for e in examples]
    assert [row["loss"] for row in told["rows"]] == pytest.approx(losses.tolist(), abs=1e-4)
