"""What an epoch of a scenario's text costs, private by confide, against plain PEFT.

Plain PEFT is written here: LoRA in all layers, every text padded to the greatest length that is
allowed, batches of 32. The other rows are confide's trainer with the scenario's settings, each with
one measure more than the row above it. A private epoch is one pass over all records of the first
holder, with its noise. If frozen layers are kept, the first epoch also computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...client.training.trainer import Trainer
from ...common.adapter.schema import flatten, get_adapter
from ...common.models.batches import EncodedText
from ...common.models.loading import LoadedModel, load_model
from ...common.models.trunk import fast_bfloat16
from ...common.plans import plan_of
from ...common.privacy.noise import SecureGenerator
from ...common.settings import Scalar, Settings, from_flat
from ...common.tasks import TASKS, Example, task_for
from ...common.text.readers import Record, read_records
from ..scenario import Scenario, prepare, run_config
from .engines import quiet
from .pairs import Row, interleaved, ratios

PLAIN = "plain PEFT, LoRA in all layers, padded"
_BATCH = 32
_RATE = 1e-4
_ALL_LAYERS: Mapping[str, Scalar] = {
    "lora.layers": 0,
    "aggregate.method": "lora",
    "model.dtype": "float32",
}


@dataclass(frozen=True, kw_only=True)
class _Lever:
    """A private epoch; ``fixed``: every text is padded; ``later``: the frozen layers are already
    computed."""

    name: str
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    fixed: bool = False
    later: bool = False


def _levers() -> list[_Lever]:
    half: dict[str, Scalar] = {"model.dtype": "bfloat16"} if fast_bfloat16() else {}
    head = {**half, "lora.method": "head"}
    return [
        _Lever(name="confide, the same", settings=_ALL_LAYERS, fixed=True),
        _Lever(name="+ short texts with short ones", settings=_ALL_LAYERS),
        *([_Lever(name="+ bfloat16 trunk", settings={**_ALL_LAYERS, **half})] if half else []),
        _Lever(name="+ LoRA in the top layer, first epoch", settings={**half, "lora.layers": 1}),
        _Lever(
            name="+ LoRA in the top layer, later", settings={**half, "lora.layers": 1}, later=True
        ),
        _Lever(name="the head alone, first epoch", settings=head),
        _Lever(name="the head alone, later", settings=head, later=True),
    ]


def epoch_rows(
    scenario: Scenario,
    *,
    repetitions: int,
    threads: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """A row for plain PEFT and for each lever; always on the CPU."""
    if threads:
        torch.set_num_threads(threads)
    file = min(prepare(scenario).glob("holder-*.jsonl"))
    config = run_config(scenario)
    say(f"{scenario.name}: first epochs")
    epochs = {PLAIN: _plain(config, file)}
    epochs |= {
        lever.name: _private({**config, **lever.settings}, lever, file) for lever in _levers()
    }
    with quiet():
        for epoch in epochs.values():
            epoch()
        say(f"{scenario.name}: time of {repetitions} epochs each")
        seconds = interleaved(epochs, repetitions, threads=threads)
    for name, each in seconds.items():
        share = ratios(seconds, name, PLAIN)
        yield Row(model=f"epoch of {scenario.name}", engine=name, seconds=tuple(each), ratios=share)


def _plain(config: Mapping[str, Scalar], file: Path) -> Callable[[], None]:
    # Another seed is another model: the trainer's hooks must not be on this one.
    settings = from_flat({**config, **_ALL_LAYERS, "run.seed": int(config["run.seed"]) + 1})
    loaded, task = load_model(settings), task_for(settings.task)
    examples = _padded(_examples(settings, loaded, file), loaded)
    parts = [examples[i : i + _BATCH] for i in range(0, len(examples), _BATCH)]
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=_RATE)

    def epoch() -> None:
        for part in parts:
            optimizer.zero_grad()
            ids = torch.tensor([example.ids for example in part])
            mask = (ids != _pad(loaded)).long()
            logits = task.logits(loaded.model(input_ids=ids, attention_mask=mask), mask)
            task.losses(logits, torch.tensor([e.target for e in part])).mean().backward()
            optimizer.step()

    return epoch


def _private(config: Mapping[str, Scalar], lever: _Lever, file: Path) -> Callable[[], None]:
    settings = from_flat(config)
    loaded = load_model(settings)
    examples = _examples(settings, loaded, file)
    if lever.fixed:
        examples = _padded(examples, loaded)
    plan, generator = plan_of(settings), SecureGenerator()
    adapter = flatten(get_adapter(loaded.model), loaded.schema.shapes)
    trainer, kept = Trainer(loaded), EncodedText(examples, loaded)

    def epoch() -> None:
        text = kept if lever.later else EncodedText(examples, loaded)
        trainer.train(adapter, text, settings, plan, generator)

    return epoch


def _examples(settings: Settings, loaded: LoadedModel, file: Path) -> list[Example]:
    data = settings.data
    records: Sequence[Record] = read_records(
        file, text=data.text, target=data.target, lists=TASKS[settings.task.kind].lists
    )
    return task_for(settings.task).encode(records, loaded.tokenizer, loaded.max_length)


def _padded(examples: Sequence[Example], loaded: LoadedModel) -> list[Example]:
    """The texts, each padded to the greatest length allowed. The padding counts as text, which
    takes the same time."""
    pad, longest = _pad(loaded), loaded.max_length
    return [Example(e.ids + (pad,) * (longest - len(e.ids)), e.target) for e in examples]


def _pad(loaded: LoadedModel) -> int:
    return loaded.tokenizer.pad_token_id or 0
