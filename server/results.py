"""A run, from Python: settings, events, metrics, report, adapter, and what can be done with them.

``Run`` reads a run folder and writes nothing into it. Nothing here needs torch before ``predict``,
``evaluate``, ``explain`` or ``export_merged`` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import ConfideError
from ..common.settings import Settings
from .report import find_run, load_report
from .run_folder import read_events, run_settings

if TYPE_CHECKING:
    from ..common.tasks import Prediction
    from .evaluation import Score
    from .explain import Explanation
    from .report.verify import Verdict

_OF_AN_EVENT = ("event", "time", "command")
_ROUND = ("seconds", "bytes_up", "bytes_down")


class Run:
    """The run in a folder.

    Args:
        path: its folder, or ``latest`` for the newest below ``./runs``.

    Raises:
        ConfideError: ``run.missing`` for a folder that no run wrote.
    """

    def __init__(self, path: str | Path = "latest") -> None:
        self.path = find_run(str(path))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def id(self) -> str:
        """Its folder's name."""
        return self.path.resolve().name

    @property
    def settings(self) -> Settings:
        """What it was started with; the same settings start it again."""
        return run_settings(self.path)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl so far, in order."""
        return read_events(self.path)

    @property
    def status(self) -> str:
        """``running`` (or ended by force), ``finished``, ``failed`` or ``stopped``."""
        found = [event for event in self.events if event["event"] in ("start", "resume", "end")]
        return str(found[-1].get("status", "running")) if found else "running"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row for each round that has been, in order; round 0 is before the first. As pandas
        takes them: ``pandas.DataFrame(run.metrics)``.

        Columns: ``round``; ``metric``, the name of the main one; each metric, ``loss`` and
        ``examples`` where the round was measured; ``accepted``, how many holders' updates counted;
        ``epsilon``, the largest that a holder had spent on this run by then (None without a bound);
        ``seconds``, and bytes of a holder ``bytes_up`` and ``bytes_down``.
        """
        rows: dict[int, dict[str, Any]] = {}
        main = ""
        for event in self.events:
            if event["event"] not in ("round", "evaluation"):
                continue
            row = rows.setdefault(event["round"], {"round": event["round"]})
            if event["event"] == "evaluation":
                row |= {k: v for k, v in event.items() if k not in _OF_AN_EVENT}
                main = main or event["metric"]  # of a round that measures others, too
                row["metric"] = main if main in row else event["metric"]
            else:
                row |= {k: event[k] for k in _ROUND if k in event}
                row |= {"accepted": len(event["accepted"]), "epsilon": _spent(event["accepted"])}
        return [rows[number] for number in sorted(rows)]

    @cached_property
    def report(self) -> dict[str, Any]:
        """The privacy report; computed, not written, where it is not there yet."""
        if (self.path / "report.json").is_file():
            return load_report(self.path)
        from .report.build import build_report

        return build_report(self.path, prv=False)

    @property
    def claim(self) -> dict[str, Any]:
        """The promise: ``sentence``, ``epsilon``, ``delta``, ``unit`` and what it rests on."""
        claim: dict[str, Any] = self.report["claim"]
        return claim

    @property
    def scores(self) -> dict[str, Any]:
        """The metrics of the adapter on the coordinator's public text."""
        after: dict[str, Any] = self.report["utility"]["after"]
        return after

    @property
    def adapter(self) -> Path:
        """The adapter's folder, in the Hub's layout.

        Raises:
            ConfideError: ``adapter.missing`` before the end of the run.
        """
        folder = self.path / "adapter"
        if not folder.is_dir():
            raise ConfideError(
                "adapter.missing",
                f"{self.path} has no adapter: the run is {self.status}.",
                "Continue it with run.resume, or start a new run.",
            )
        return folder

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Answers for texts; see ``server.predict.predict``."""
        from .predict import predict

        return predict(self.path, texts)

    def evaluate(
        self, file: str | Path | None = None, *, text: str | None = None, target: str | None = None
    ) -> Score:
        """The score on a file of records, or again on the coordinator's public text; see
        ``server.predict.evaluate_run``."""
        from .predict import evaluate_run

        return evaluate_run(self.path, Path(file) if file else None, text=text, target=target)

    def explain(self, text: str) -> Explanation:
        """Which words drove the answer to a text; see ``server.explain.explain``."""
        from .explain import explain

        return explain(self.path, text)

    def export_merged(self, folder: str | Path) -> Path:
        """Write base model and adapter as one model into a new folder."""
        from .predict import export_merged

        export_merged(self.path, Path(folder))
        return Path(folder)

    def verify(self, *ledgers: str | Path) -> Verdict:
        """Make the report again from the run's files and these ledgers of holders, and name every
        difference; see ``server.report.verify``."""
        from .report.verify import verify_run

        return verify_run(self.path, [Path(ledger) for ledger in ledgers])


def _spent(accepted: Sequence[dict[str, Any]]) -> float | None:
    """The most that a holder had spent; None where somebody's has no bound."""
    known = [row["receipt"]["epsilon"] for row in accepted if "epsilon" in row.get("receipt", {})]
    return None if not known or None in known else max(known)
