"""The privacy report of a run: computed once, shown in three ways, and made again to verify it.

``reading`` reads a run folder, ``build`` computes report.json from it with the ``checks`` that it
stands on, ``html`` (with ``svg``), ``terminal`` and the adapter's card show it, and ``verify``
makes all of that again and names every difference. Here is what they share. Nothing in this room
needs torch, except the second opinion of Opacus's PRV accountant, which only ``build`` asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from html import escape as _escape
from pathlib import Path
from typing import Any

from ...common.errors import ConfideError

SCHEMA = "confide-report/2"
REPORT, PAGE = "report.json", "report.html"
MOST_PROMISE = 100.0  # above it an epsilon is no promise, and its digits would mislead

Json = dict[str, Any]


def find_run(name: str, runs: Path | None = None) -> Path:
    """The folder of a run: a path, or ``latest`` for the newest one under ``./runs``."""
    if name != "latest":
        folder = Path(name).expanduser()
        if not (folder / "metrics.jsonl").is_file():
            raise ConfideError(
                "run.missing",
                f"{name!r} is not a run folder: it holds no metrics.jsonl.",
                "Give a folder below runs/, or 'latest'.",
            )
        return folder
    runs = runs or Path("runs")
    found = [path.parent for path in runs.glob("*/metrics.jsonl")]
    if not found:
        raise ConfideError(
            "run.missing",
            f"There is no run under {str(runs)!r}.",
            "Start one with `confide simulate`, or give the folder of a run.",
        )
    return max(found, key=lambda folder: (began(folder), folder.name))


def began(folder: Path) -> float:
    """When a run began, in seconds since 1970: by the first of its events that says a time, else by
    its folder's. A name's time may be of another place's clock."""
    with (folder / "metrics.jsonl").open("rb") as lines:
        for line in lines:
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                return datetime.fromisoformat(json.loads(line)["time"]).timestamp()
    return folder.stat().st_mtime


def load_report(folder: Path) -> dict[str, Any]:
    """report.json of a run folder; refused when torn or of another schema."""
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfideError(
            "report.missing",
            f"The run folder {folder.name!r} has no report.json.",
            "Use `confide report show`, which computes it.",
        ) from error
    except ValueError as error:
        raise ConfideError(
            "report.corrupt",
            f"report.json of {folder.name!r} is not readable JSON.",
            "Delete it; `confide report show` computes it again from the run folder.",
        ) from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ConfideError(
            "report.schema",
            f"report.json of {folder.name!r} does not follow the schema {SCHEMA!r}.",
            "Read it with the version of confide that wrote it.",
        )
    return report


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon for people, rounded up, since a claim may only err upwards."""
    if epsilon is None or not math.isfinite(epsilon):
        return "–"
    return f"{math.ceil(epsilon * 100 - 1e-6) / 100:.2f}"


def unmasked(claim: Json) -> list[str]:
    """What a claim says of its secure sums, in sentences; nothing where there were none."""
    about = claim.get("secure_sum")
    if not about:
        return []
    left = (
        f"If every mask failed, each holder's own share of noise would be left: epsilon ="
        f" {epsilon_text(about['unmasked_epsilon'])}."
    )
    return [*about["told"], left]


def group_text(epsilon: float | None) -> str:
    """The epsilon of several records together."""
    if epsilon is None or epsilon > MOST_PROMISE:
        return "above 100, which is no promise"
    return epsilon_text(epsilon)


def percent(share: float | None) -> str:
    """A share for people."""
    return "–" if share is None else f"{100 * share:.1f} %"


# Names as people know them, where they are more than a capital letter.
_TITLES = {
    "f1": "F1", "macro-f1": "Macro-F1", "micro-f1": "Micro-F1", "mcc": "MCC", "bleu": "BLEU",
    "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "token-f1": "Token F1", "token-error": "Token error (less is better)",
}  # fmt: skip
# Between 0 and 1, between -1 and 1, and between 0 and 100 by their own convention.
_SHARES = (
    "accuracy", "exact-match", "micro-f1", "f1", "macro-f1", "token-f1", "token-error", "rouge1",
    "rouge2", "rougeL",
)  # fmt: skip
_CORRELATIONS = ("mcc", "pearson", "spearman")
_POINTS = ("bleu", "chrf")


def metric_title(metric: str) -> str:
    """A metric's name for people."""
    return _TITLES.get(metric, metric[:1].upper() + metric[1:])


def value_text(metric: str, value: float | None) -> str:
    """A metric's value for people."""
    if value is None:
        return "–"
    if metric in _SHARES:
        return percent(value)
    return f"{value:.3f}" if metric in _CORRELATIONS else f"{value:,.1f}"


def kept_text(utility: Mapping[str, Any]) -> str:
    """Which round's adapter is kept, where it was chosen; empty for the last one."""
    kept = utility.get("kept")
    if kept is None:
        return ""
    return (
        f"The adapter after round {kept} is kept, whose loss was the least; that these records"
        " chose it flatters it."
    )


def rounds_text(report: Mapping[str, Any]) -> str:
    """How many of the planned rounds counted, where some did not; empty where all did, or the run
    ended early as it was planned to."""
    run = report["run"]
    if run["rounds"] >= run["rounds_planned"] or report["utility"].get("kept") is not None:
        return ""
    return f" {run['rounds']} of {run['rounds_planned']} rounds counted."


def share_of(metric: str, value: float | None, largest: float) -> float:
    """The length of a value's bar in [0, 1]; of a metric without an upper end, as a part of the
    ``largest`` value beside it."""
    if value is None:
        return 0.0
    top = 1.0 if metric in (*_SHARES, *_CORRELATIONS) else 100.0 if metric in _POINTS else largest
    return min(max(value / top, 0.0), 1.0) if top > 0 else 0.0


def is_share(metric: str) -> bool:
    """Whether the metric is shown in per cent."""
    return metric in _SHARES


def plain(value: Any) -> str:
    """Words from elsewhere without control characters, and without what turns the direction of
    writing: a terminal obeys the ones, an eye the others."""
    return "".join(
        letter if letter.isprintable() or letter in _SPACES else "\N{REPLACEMENT CHARACTER}"
        for letter in str(value)
    )


def all_plain(value: Any) -> Any:
    """A report of which every word is ``plain``."""
    if isinstance(value, Mapping):
        return {plain(key): all_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [all_plain(inner) for inner in value]
    return plain(value) if isinstance(value, str) else value


_SPACES = "\n\N{NO-BREAK SPACE}"


def escape(value: Any) -> str:
    """Text for a page, also inside a quoted attribute."""
    return _escape(plain(value), quote=True)


def finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN; both are told as null, which is never a promise."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def no_path(value: Any) -> Any:
    """A value without the folders of this machine."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def wilson(share: float | None, count: int | None, z: float = 1.959964) -> list[float] | None:
    """The 95 % interval of a share that was counted (Wilson 1927)."""
    if share is None or not count:
        return None
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return [centre - half, centre + half]
