"""Yardsticks: figures to compare the private federation with, on the same text.

First plain fine-tuning by Hugging Face's ``Trainer``, with all text in one place and no privacy
(``fine_tuned``). Then the federation without privacy; one holder alone; a private head alone;
central training on the pooled records under the same epsilon; and for classes TF-IDF with logistic
regression, which needs no language model at all. Those in ``YARDSTICKS`` are runs of the same code
with other settings, in this process, below the run's own folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import ConfideError
from ..common.machine.paths import local_or_cached
from ..common.metrics import compute
from ..common.settings import Scalar, Settings, from_flat
from ..common.tasks import TASKS, task_for
from ..common.text.readers import Record, read_records
from ..server.run_folder import PUBLIC_FILE
from .simulation import in_process

if TYPE_CHECKING:
    from ..common.models.loading import LoadedModel

CENTRAL = "Central fine-tuning, no privacy"
RECIPE = "all records in one place; LoRA of rank 8 in all layers, AdamW 1e-3, batch 32, 3 epochs"
_RATE, _BATCH, _EPOCHS = 1e-3, 32, 3
# In how many passes a language model takes its batch: each text of 320 tokens takes SmolLM2-135M
# 0.8 GB, so that 32 at once would take 26. Gradients are added up, so that a step is the same.
_PASSES = 8
_LORA: Mapping[str, Scalar] = {"lora.rank": 8, "lora.alpha": 16.0, "lora.targets": "all-linear"}
# What is learnt from which text, and how it is measured, is the run's; and its seed.
_KEPT = ("model.", "data.", "task.", "train.max-length", "run.seed")
# Against imbalance, and drawn copies: the run's own, which plain fine-tuning does without.
_LEFT_OUT = tuple(
    f"task.{name}"
    for name in ("loss", "gamma", "class-weights", "class-rates", "word-dropout", "copies")
)

_ONE_HOLDER: Mapping[str, Scalar] = {"round.min-holders": 1, "round.holders": 1}


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A comparison: the settings that differ, and the files of the federation that take part."""

    name: str
    note: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    files: str = "all"  # all, first, pooled


YARDSTICKS = (
    Yardstick(
        name="No privacy",
        note="the same federation and clipping without noise",
        settings={"privacy.trust": "off", "privacy.noise-multiplier": "auto"},
    ),
    Yardstick(
        name="One holder alone",
        note="holder-00 with its own text, the same epsilon",
        settings=_ONE_HOLDER,
        files="first",
    ),
    Yardstick(
        name="Private head alone",
        note="the same federation and epsilon, no LoRA",
        settings={"lora.method": "head"},
    ),
    Yardstick(
        name="Central, pooled records",
        note="one place holds all records, the same epsilon",
        settings=_ONE_HOLDER,
        files="pooled",
    ),
)


def measure(folder: Path, config: Mapping[str, Scalar], say: Callable[[str], None]) -> None:
    """Run all yardsticks of a finished run and leave ``yardsticks.json`` in its folder."""
    settings = from_flat(config)
    data = local_or_cached(settings.data.path, "federations")
    if data is None:
        raise FileNotFoundError(settings.data.path)
    say(CENTRAL)
    rows = [_central(data, config), *_without_a_model(data, settings)]
    language = TASKS[settings.task.kind].language
    alone = settings.privacy.unit == "holder"  # one place alone would drown in its own noise
    for yardstick in YARDSTICKS:
        if alone and yardstick.files != "all":
            continue
        if language and yardstick.settings.get("lora.method") == "head":
            continue  # a language model's head is the base model's own, and stays frozen
        say(yardstick.name)
        rows.append(_run(yardstick, folder, data, config))
    (folder / "yardsticks.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _run(
    yardstick: Yardstick, folder: Path, data: Path, config: Mapping[str, Scalar]
) -> dict[str, Any]:
    files = sorted(data.glob("holder-*.jsonl"))
    batch = int(config.get("train.batch", Settings().train.batch))
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        if yardstick.files == "first":
            files = files[:1]
        elif yardstick.files == "pooled":
            pooled = Path(scratch) / "pooled.jsonl"
            pooled.write_bytes(b"".join(path.read_bytes() for path in files))
            batch, files = batch * len(files), [pooled]
        name = yardstick.name.lower().replace(",", "").replace(" ", "-")
        out = Path(scratch) / "runs"
        changed: dict[str, Scalar] = {"run.out": str(out), "run.name": name, "run.resume": ""}
        changed |= {"data.path": str(data), "train.batch": batch, **yardstick.settings}
        if yardstick.files != "all" and config.get("privacy.trust") == "distributed":
            changed["privacy.trust"] = "local"  # which is the same where there is one
        overrides = {**config, **changed, "run.id": ""}
        report = in_process(overrides, files).report
    utility = report["utility"]
    private = overrides.get("privacy.trust", "local") != "off"
    return {
        "name": yardstick.name,
        **{name: value for name, value in utility["after"].items() if name != "loss"},
        "epsilon": report["claim"]["epsilon"] if private else None,
        "delta": report["claim"]["delta"] if private else None,
        "note": yardstick.note,
    }


def _without_a_model(data: Path, settings: Settings) -> list[dict[str, Any]]:
    """The task's own yardsticks: pooled, without privacy and a language model."""
    task = task_for(settings.task)
    train, test = _pooled(data, settings), _records(data / PUBLIC_FILE, settings)
    rest = {"epsilon": None, "delta": None, "note": "pooled records, no privacy"}
    return [
        {"name": name, **{m: compute(m, answers, right) for m in task.metrics}, **rest}
        for name, (answers, right) in task.yardsticks(train, test).items()
    ]


def _pooled(data: Path, settings: Settings) -> list[Record]:
    """The records of all holders."""
    files = sorted(data.glob("holder-*.jsonl"))
    return [record for path in files for record in _records(path, settings)]


def _records(path: Path, settings: Settings) -> list[Record]:
    data, lists = settings.data, TASKS[settings.task.kind].lists
    return read_records(path, text=data.text, target=data.target or None, lists=lists)


def _central(data: Path, config: Mapping[str, Scalar]) -> dict[str, Any]:
    """The row of central fine-tuning. If this model or task cannot be trained so, it has the reason
    in place of a figure."""
    rest = {"epsilon": None, "delta": None}
    try:
        found = fine_tuned(data, config)
    except ConfideError as error:
        return {"name": CENTRAL, **rest, "note": f"not measured: {error.message}"}
    return {"name": CENTRAL, **found, **rest, "note": RECIPE}


def fine_tuned(data: Path, config: Mapping[str, Scalar]) -> dict[str, float]:
    """What plain central fine-tuning reaches on the held-out text, without any privacy.

    The recipe is fixed, the same for every text and task, and nothing of it is chosen on the
    records that are reported: PEFT's LoRA of rank 8 (alpha 16) in every linear layer of every
    block, AdamW at 1e-3, 32 records a step, three epochs, by Hugging Face's ``Trainer``; all else
    is its default (the rate falls linearly to zero, no weight decay, gradients longer than 1 are
    cut). Model, head, pooling, length and metric are the run's, as `confide evaluate` has them. The
    loss is the task's own, without weights of classes, focus, or copies with words left out.

    Args:
        data: the federation's folder: files of holders, and the public text.
        config: flat settings of a run; ``run.seed`` decides the adapter and the order of records.

    Returns:
        The task's metrics by name, the main one first.

    Raises:
        ConfideError: of a model that takes no such adapter, or text that does not fit the task.
    """
    from ..common.models.loading import load_model
    from ..server.evaluation import public_evaluator

    kept = {k: v for k, v in config.items() if k.startswith(_KEPT) and k not in _LEFT_OUT}
    settings = from_flat({**kept, **_LORA})
    loaded = load_model(settings)
    records = _pooled(data, settings)
    with _adapter_put_back(loaded):
        _train(loaded, records, settings.run.seed)
        return dict(public_evaluator(loaded, settings, data).score().metrics)


@contextmanager
def _adapter_put_back(loaded: LoadedModel) -> Iterator[None]:
    """The model is warm, and the next run's too."""
    from ..common.adapter.schema import set_adapter

    set_adapter(loaded.model, loaded.initial)
    try:
        yield
    finally:
        set_adapter(loaded.model, loaded.initial)
        loaded.model.eval()


def _train(loaded: LoadedModel, records: Sequence[Record], seed: int) -> None:
    """``Trainer`` on the task's own batches and losses."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from ..common.models.batches import forward

    task, draws = loaded.task, torch.Generator().manual_seed(seed)
    passes = 1 if task.by_logits else _PASSES

    def collate(examples: list[Any]) -> dict[str, Any]:
        drawn = examples if task.fixed else [task.redraw(e, loaded, draws) for e in examples]
        return {"batch": task.collate(drawn, loaded)}

    class PooledTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            batch = inputs["batch"].on(loaded.model.device)
            return task.losses(forward(loaded, task, batch), batch.targets).mean()

    with torch.random.fork_rng(), tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        trainer = PooledTrainer(
            model=loaded.model,
            args=TrainingArguments(
                output_dir=scratch,
                learning_rate=_RATE,
                per_device_train_batch_size=_BATCH // passes,
                gradient_accumulation_steps=passes,
                num_train_epochs=_EPOCHS,
                seed=seed,
                use_cpu=loaded.model.device.type == "cpu",
                dataloader_pin_memory=False,
                remove_unused_columns=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=task.encode(records, loaded.tokenizer, loaded.max_length),
            data_collator=collate,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
