"""One trial of a search: a run of the product in this process, ended early where it is not worth
going on with, and what its events say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import ConfideError
from ..common.metrics import METRICS
from ..common.settings import Scalar
from ..server.results import Run

PERPLEXITY = "perplexity"
_PRUNED = "tune.pruned"


def one_run(
    config: Mapping[str, Scalar],
    data: Path,
    ledgers: Path,
    hopeless: Callable[[int, float], bool],
) -> dict[str, Any]:
    """One run as a plain dict: state, measure, curve, code, and what it took.

    Args:
        hopeless: asked before each round with the last one and its measure; True ends the run.
    """
    from ..server.run_folder import RunFolder
    from .simulation import in_process

    folder = RunFolder.create(str(config["run.out"]), str(config["run.name"])).path
    files = sorted(data.glob("holder-*.jsonl"))
    state, code, message = "complete", "", ""
    try:
        in_process(
            {**config, "run.id": folder.name},
            files,
            ledgers=ledgers,
            watched=lambda members: _Watched(members, folder, hopeless),
        )
    except ConfideError as error:
        code, message = error.code, error.message
        state = "pruned" if code == _PRUNED else "failed"
    return {"state": state, "code": code, "message": message, **_facts(folder)}


def _facts(folder: Path) -> dict[str, Any]:
    """What the run says of itself; the peak of memory is the whole process's."""
    run = Run(folder)
    by_kind = {event["event"]: event for event in run.events}  # the last of each kind
    start, end = (by_kind.get(kind, {}) for kind in ("start", "end"))
    scores = [row for row in run.metrics if "metric" in row]
    sent = [row for row in run.metrics if "bytes_up" in row]
    last = sent[-1] if sent else {}
    # The first has the main metric; one that a round leaves out is not made up for by another.
    curve = [(r["round"], _measured(r)) for r in scores if r["metric"] == scores[0]["metric"]]
    return {
        "measure": curve[-1][1] if scores and scores[-1]["metric"] == scores[0]["metric"] else None,
        "curve": curve,
        "run": folder.name,
        "seconds": end.get("seconds"),
        "megabytes": end.get("peak_memory_mb"),
        "bytes_up": last.get("bytes_up"),
        "bytes_down": last.get("bytes_down"),
        "parameters": start.get("model", {}).get("parameters"),
        "trained": start.get("model", {}).get("trained"),
    }


def _measured(evaluation: Mapping[str, Any]) -> float:
    metric = evaluation["metric"]
    if metric == PERPLEXITY:
        return float(-evaluation["loss"])
    return float(-evaluation[metric] if METRICS[metric].less else evaluation[metric])


class _Watched:
    """A transport that ends a run which is not worth going on with, before its next round."""

    def __init__(self, inner: Any, run: Path, hopeless: Callable[[int, float], bool]) -> None:
        self._inner, self._run, self._hopeless = inner, run, hopeless

    patience = 0.0

    def nodes(self) -> Sequence[int]:
        return self._inner.nodes()  # type: ignore[no-any-return]

    def ready(self, nodes: Sequence[int], request: Any, timeout: float) -> Mapping[int, Any]:
        return self._inner.ready(nodes, request, timeout)  # type: ignore[no-any-return]

    def ask(self, nodes: Sequence[int], request: Any, timeout: float) -> Mapping[int, Any]:
        scores = [row for row in Run(self._run).metrics if "metric" in row]
        if (
            scores
            and scores[-1]["round"]
            and scores[-1]["metric"] == scores[0]["metric"]
            and self._hopeless(scores[-1]["round"], _measured(scores[-1]))
        ):
            raise ConfideError(
                _PRUNED,
                f"Ended after round {scores[-1]['round']}: below the median of earlier trials.",
            )
        return self._inner.ask(nodes, request, timeout)  # type: ignore[no-any-return]
