"""How much a record's gradient depends on the records beside it, on the demo's model and text.

The clip norm bounds what one record adds to a sum only as far as the others' gradients stay what
they are. Matrix products of another size are rounded in another order: that is all that moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from confide.client.training.per_example import PerExample
from confide.common.models import loading as models
from confide.common.models.batches import EncodedText, forward
from confide.common.models.loading import load_model
from confide.common.settings import from_flat
from confide.common.tasks import task_for
from confide.common.text.readers import read_records
from confide.simulations.scenario import load_scenario, prepare, run_config

RECORDS, BESIDE = 40, 8


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_a_records_gradient_hardly_depends_on_its_neighbours(
    real_cache: Path, dtype: str, most: float
) -> None:
    scenario = load_scenario("nyt")
    settings = from_flat({**run_config(scenario), "model.dtype": dtype})
    models._load.cache_clear()
    loaded, task = load_model(settings), task_for(settings.task)
    file = min(prepare(scenario).glob("holder-*.jsonl"))
    records = read_records(file)[:RECORDS]
    text = EncodedText(task.encode(records, loaded.tokenizer, loaded.max_length), loaded)
    engine = PerExample(loaded.model)
    loaded.model.train()
    generator = torch.Generator().manual_seed(0)
    for parameter in engine.trained:
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)

    def rows(indices: Sequence[int]) -> torch.Tensor:
        batch = text.together(indices)
        task.losses(forward(loaded, task, batch), batch.targets).sum().backward()
        found = [p.grad_sample.double().flatten(1) for p in engine.trained]  # type: ignore[attr-defined]
        engine.forget()
        return torch.cat(found, 1)

    alone = torch.cat([rows([i]) for i in range(RECORDS)])
    few = torch.cat([rows(range(i, i + BESIDE)) for i in range(0, RECORDS, BESIDE)])
    every = rows(range(RECORDS))
    for together in (few, every):
        moved = float(((together - alone).norm(dim=1) / alone.norm(dim=1)).max())
        print(f"\n{dtype}: a record's gradient moves by at most {moved:.1e} of its length")
        assert moved <= most
    engine.remove_hooks()
    models._load.cache_clear()
