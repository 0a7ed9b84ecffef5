"""The live display of a simulated run: rounds, holders, loss, epsilon so far, time left."""

from __future__ import annotations

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Display:
    """Shows the events of a run as they come.

    Args:
        rounds: how many the run has.
        epsilon: the run's promise, beside which the spent epsilon is shown.
    """

    def __init__(self, console: Console, rounds: int, epsilon: float) -> None:
        self._promise, self._rounds = epsilon, rounds
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=rounds, facts="", left="")
        self._facts: dict[str, str] = {}
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event of metrics.jsonl."""
        for warning in event.get("warnings", ()):
            self._progress.console.print(f"warning: {warning}", markup=False, highlight=False)
        if event["event"] == "round":
            self._round(event)
        elif event["event"] == "evaluation":
            metric = event.get("metric", "accuracy")
            self._facts["metric"] = f"{metric} {event[metric]:.3f}"
            self._facts["loss"] = f"loss {event['loss']:.3f}"
        description = "round" if event["event"] != "end" else str(event["status"])
        self._progress.update(
            self._task, description=description, facts=" · ".join(self._facts.values())
        )

    def _round(self, event: dict[str, Any]) -> None:
        accepted = event["accepted"]
        self._facts["holders"] = f"{len(accepted)} holders"
        if event["left_out"]:
            self._facts["holders"] += f", {len(event['left_out'])} left out"
        told = [row["receipt"]["epsilon"] for row in accepted]
        spent = max((epsilon for epsilon in told if epsilon is not None), default=None)
        if spent is not None:
            self._facts["epsilon"] = f"ε {spent:.2f} of {self._promise:g}"
        number, moment = event["round"], time.monotonic()
        if self._first is None:
            self._first = (moment, number)
        elif number > self._first[1]:
            pace = (moment - self._first[0]) / (number - self._first[1])
            left = f"{pace * (self._rounds - number):.0f} s left"
            self._progress.update(self._task, left=left)
        self._progress.update(self._task, completed=number)
