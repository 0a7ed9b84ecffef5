"""Tasks: what a record means, and the loss of one example. A new task is one more module here.

A task encodes records, names the model class and the PEFT task type, gives one loss per example
(never a mean over the batch: that would let one record rescale the others before clipping), and
scores. It never sees a ledger, a message or a file.
"""

from ..settings import TaskSpec
from .classification import Classification


def task_for(spec: TaskSpec) -> Classification:
    """The task that the settings name."""
    return Classification(spec)


__all__ = ["Classification", "task_for"]
