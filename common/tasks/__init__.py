"""Tasks: what a record means, and the loss of one example. A new task is one more module here and
its name below, with what is to be known without torch in ``common.kinds``.

A task encodes records, names the model class and the PEFT task type, gives one loss per example
(never a mean over the batch: that would let one record rescale the others before clipping), and
answers. It never sees a ledger, a message or a file.
"""

from collections.abc import Callable, Mapping

from ..settings import TaskSpec
from .causal import Causal
from .classification import Classification, class_indices
from .example import Batch, Example, Prediction
from .masked import Masked
from .regression import Regression
from .seq2seq import Seq2Seq
from .spans import Spans
from .task import Place, Task

TASKS: Mapping[str, Callable[[TaskSpec], Task]] = {
    "classification": Classification,
    "regression": Regression,
    "seq2seq": Seq2Seq,
    "causal": Causal,
    "masked": Masked,
    "spans": Spans,
}


def task_for(spec: TaskSpec) -> Task:
    """The task that the settings name.

    Raises:
        ConfideError: ``settings.combination`` for a metric that it does not have.
    """
    return TASKS[spec.kind](spec)


__all__ = [
    "TASKS",
    "Batch",
    "Classification",
    "Example",
    "Place",
    "Prediction",
    "Task",
    "class_indices",
    "task_for",
]
