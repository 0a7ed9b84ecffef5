"""A run over a federation's real holders, watched from its start to its report.

The run itself is ``server.run`` inside Flower's ServerApp; here it is started with the bundle that
the holders have pinned, its folder is watched, and when the coordinator's processes died under it,
it goes on from its checkpoint: as the same run of confide, and another of Flower's. What a run
says of itself counts, never what Flower says of it (a run in which every holder failed is
"completed" there).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ...common.errors import ConfideError
from ...common.machine.paths import local_or_cached, resumed_run, runs_folder, write_public
from ...common.machine.processes import last_words_in, length_of
from ...common.settings import Scalar, from_flat
from ..run_folder import PUBLIC_FILE, RunFolder, Tail, by_room, new_id, read_events, read_live
from . import flower
from .bundle import check_bundle
from .federation import Federation
from .members import check_roster, names

Event = dict[str, Any]

# Which run of Flower's each run folder is now, by its path, and for which command. It lies in the
# federation's folder: a run folder may come from anybody, and a run of Flower's that it names would
# be followed and ended.
_NOTE = "flower/runs.json"
_MOST_NOTES = 1000
_POLL_SECONDS = 0.5
_ASK_SECONDS = 5.0  # between two questions to Flower
_AWAY_SECONDS = 900.0  # a coordinator that comes back later than that is not waited for
_MOST_TRIES = 3  # without a round between them
# How a run ends that somebody or something ended, rather than itself.
_DIED = ("run.failed", "run.stopped")


@dataclass
class Watch:
    """A run under way. ``progress`` hears its events, and ``{"event": "holders"}`` with a state
    for each: away, connected, training, done, or the code of a refusal."""

    federation: Federation
    config: Mapping[str, Scalar]
    progress: Callable[[Event], None]
    out: Path
    folder: Path | None = None
    _tail: Tail | None = None
    _connected: frozenset[int] = frozenset()
    _status: str = ""
    _said: int = 0  # how much of the log was there before

    def run(self) -> Path:
        """From start to report, over as many runs of Flower's as it takes."""
        tries = 0
        self._rounds()  # a damaged folder is refused before anything is started
        number = self._running()
        if self.folder and (number is None or (self.folder / "checkpoint").is_dir()):
            RunFolder.reopen(from_flat(self.config))  # and so is one with other settings
        number = number or self._begin()
        while True:
            before = self._rounds()
            try:
                self._follow(number)
            except KeyboardInterrupt:
                flower.stop_run(self.federation, number)
                raise
            if self._is_whole():
                return self._found()
            tries = 1 if self._rounds() > before else tries + 1
            if tries > _MOST_TRIES:
                raise ConfideError(
                    "run.failed",
                    f"The run died {_MOST_TRIES} times without a round in between:"
                    f" {self._last_words()}",
                    f"Read {self._log}.",
                )
            self.progress({"event": "again", "round": self._rounds()})
            number = self._begin()

    def _begin(self) -> int:
        """Start a run of Flower's: anew, or from the checkpoint if there is one."""
        resumed = self.folder if self.folder and (self.folder / "checkpoint").is_dir() else None
        command = new_id(str(self.config.get("run.name", "run")))
        self.folder = resumed or self.out / command
        self._tail = Tail(self.folder, command, self.progress)
        place = {"run.out": str(self.out), "run.resume": str(resumed or "")}
        flat = {**self.config, **place, "run.id": command}
        self._said = length_of(self._log)
        path = self.federation.folder / "flower" / f"run-config-{command}.toml"
        write_public(path, tomli_w.dumps(by_room(flat)).encode())
        try:
            number = flower.start_run(self.federation, path)
        finally:
            path.unlink(missing_ok=True)
        self._note(number, command)
        return number

    def _running(self) -> int | None:
        """The run of Flower's that this folder belongs to, if it is still under way."""
        noted = self._notes().get(str(self.folder))
        if noted is None or self.folder is None:
            return None
        number, command = int(noted["run"]), str(noted["command"])
        self._tail = Tail(self.folder, command, self.progress, from_now=True)
        open_ids = {run.id for run in flower.runs(self.federation) if not run.over}
        return number if number in open_ids else None

    def _follow(self, number: int) -> None:
        """Pass events on until Flower calls the run over and its last event is there."""
        asked = -_ASK_SECONDS
        over = False
        while not over:
            if time.monotonic() - asked >= _ASK_SECONDS:
                over = self._patiently_over(number)
                asked = time.monotonic()
            self._look()
            if not over:
                time.sleep(_POLL_SECONDS)

    def _patiently_over(self, number: int) -> bool:
        """Whether Flower's run has ended; asked again while the coordinator is being restarted."""
        lost = time.monotonic()
        while True:
            try:
                return self._over(number)
            except ConfideError as error:
                away = time.monotonic() - lost
                if error.code != "server.down" or away > _AWAY_SECONDS:
                    raise
                self.progress({"event": "away", "seconds": round(away)})
                time.sleep(_ASK_SECONDS)

    def _over(self, number: int) -> bool:
        """Whether Flower's run has ended; notes who is connected on the way."""
        found = {run.id: run for run in flower.runs(self.federation)}
        online = (node.id for node in flower.nodes(self.federation) if node.online)
        self._connected = frozenset(online)
        self._status = found[number].status if number in found else "finished:lost"
        return self._status.startswith("finished")

    def _look(self) -> None:
        if self._tail:
            self._tail.look()
        self._show()

    def _show(self) -> None:
        of_round = read_live(self.folder)[1] if self.folder else {}
        states = {}
        for node, name in names(self.federation).items():
            state = "connected" if node in self._connected else "away"
            states[name] = of_round.get(node, state)
        self.progress({"event": "holders", "states": states})

    def _is_whole(self) -> bool:
        """True for a run with its report, False for one that died; its own error is raised."""
        last = self._last_end()
        if self._status == "finished:stopped":
            raise ConfideError("run.stopped", "Somebody stopped the run.", self._hint())
        if not last or last["code"] in _DIED:
            return False
        if last["status"] != "finished":
            said = str(last.get("message") or "The run did not finish.")
            raise ConfideError(last["code"], said.removeprefix(f"[{last['code']}] "), self._hint())
        return (self._found() / "report.json").is_file()

    def _last_end(self) -> Event:
        """The end of the run's newest part, which none of an earlier part is; empty before."""
        return self._tail.end if self._tail else {}

    def _rounds(self) -> int:
        events = read_events(self.folder) if self.folder else []
        return max((int(e["round"]) for e in events if e["event"] == "round"), default=0)

    def _note(self, number: int, command: str) -> None:
        notes = {path: run for path, run in self._notes().items() if path != str(self.folder)}
        notes[str(self.folder)] = {"run": number, "command": command}
        newest = dict(list(notes.items())[-_MOST_NOTES:])
        write_public(self.federation.folder / _NOTE, json.dumps(newest).encode())

    def _notes(self) -> dict[str, Event]:
        path = self.federation.folder / _NOTE
        return json.loads(path.read_bytes()) if path.is_file() else {}

    def _found(self) -> Path:
        if self.folder is None or not self.folder.is_dir():
            raise ConfideError(
                "server.flower",
                f"Flower ended the run before it began: {self._last_words()}",
                f"Read {self._log}.",
            )
        return self.folder

    @property
    def _log(self) -> Path:
        return self.federation.logs / "superexec.log"

    def _last_words(self) -> str:
        """What the run itself said of its end, else the program that it ran in."""
        return str(self._last_end().get("message") or last_words_in(self._log, self._said))

    def _hint(self) -> str:
        return f"What there is lies in {self.folder}; name that folder to go on with the run."


def run_over(
    federation: Federation,
    config: Mapping[str, Scalar],
    progress: Callable[[Event], None],
    *,
    wait: float,
) -> Path:
    """Run what ``config`` (all flat keys) describes over the federation; returns the run folder.

    Args:
        wait: seconds to wait for holders that are not connected; then it begins with those there.

    Raises:
        ConfideError: ``sum.no-roster``, ``provision.bundle``, ``server.down``,
            ``run.too-few-holders``, and whatever ended the run.
    """
    settings = from_flat(config)
    check_roster(settings, federation.roster)
    check_bundle(federation, config)
    progress = _once(progress)
    least = max(settings.round.min_holders, settings.round.holders)
    _await_holders(federation, least, wait, progress)
    data = _public_text(federation, settings.data.path)
    told = {**config, "data.path": str(data)}
    return Watch(federation, told, progress, runs_folder(config), resumed_run(config)).run()


def _once(progress: Callable[[Event], None]) -> Callable[[Event], None]:
    """``progress``, which hears of the holders only when something about them has changed."""
    shown: Event = {}

    def tell(event: Event) -> None:
        if event["event"] == "holders":
            if event["states"] == shown.get("states"):
                return
            shown.update(event)
        progress(event)

    return tell


def _await_holders(
    federation: Federation, least: int, wait: float, progress: Callable[[Event], None]
) -> None:
    """Until all who may connect have, or time is up and there are enough."""
    wanted, deadline = len(federation.active()), time.monotonic() + wait
    while True:
        online = {node.id for node in flower.nodes(federation) if node.online}
        states = {n: "connected" if i in online else "away" for i, n in names(federation).items()}
        progress({"event": "holders", "states": states})
        if len(online) >= wanted:
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(2.0)
    if len(online) < least:
        raise ConfideError(
            "run.too-few-holders",
            f"{len(online)} of {wanted} holders are connected; the run needs {least}.",
            "See `confide server status`, wait longer with --wait, or lower round.min-holders.",
        )


def _public_text(federation: Federation, name: str) -> Path:
    """A folder with the coordinator's public text and nothing that tells of simulated holders.

    Raises:
        ConfideError: ``data.missing-file``.
    """
    found = local_or_cached(name, "federations")
    public = found / PUBLIC_FILE if found else None
    if public is None or not public.is_file():
        raise ConfideError(
            "data.missing-file",
            f"data.path = {name!r} is not a folder with {PUBLIC_FILE}, the public text for scores.",
            "Make one, or `confide assets fetch SCENARIO` for a scenario's.",
        )
    place = federation.folder / "public" / public.parent.name
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    link = place / PUBLIC_FILE
    link.unlink(missing_ok=True)
    link.symlink_to(public)
    return place
