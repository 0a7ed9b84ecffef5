"""Tasks: what a record means, and the loss of one example.

A task encodes records, names the model class and the PEFT task type, gives one loss per example
(never a mean over the batch: that would let one record rescale the others before clipping), and
answers. It never sees a ledger, a message or a file. A new task is one more module here, whose name
is the value of ``task.kind``, and that name below (docs/how-it-works.md, "How to add a task").
Nothing here imports torch before it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from .example import Batch, Example, Prediction
from .task import Place, Task

if TYPE_CHECKING:
    from ..settings import TaskSpec

# In the order in which they are listed; the first is the one that settings begin with.
_KINDS = (
    "classification",
    "multilabel",
    "regression",
    "seq2seq",
    "causal",
    "masked",
    "spans",
)


def _task_of(kind: str) -> type[Task]:
    """The one task of a module."""
    found = vars(import_module(f".{kind}", __name__)).values()
    return next(one for one in found if isinstance(one, type) and vars(one).get("kind") == kind)


TASKS: Mapping[str, type[Task]] = {kind: _task_of(kind) for kind in _KINDS}


def task_for(spec: TaskSpec) -> Task:
    """The task that the settings name.

    Raises:
        ConfideError: ``settings.combination`` for a metric that it does not have.
    """
    return TASKS[spec.kind](spec)


__all__ = ["TASKS", "Batch", "Example", "Place", "Prediction", "Task", "task_for"]
