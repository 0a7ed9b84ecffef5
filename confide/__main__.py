"""The command line: joins the ``cli.py`` of each room, and is the one place that ends a process.

Nothing heavy is imported here or by a room's ``cli.py`` until a command needs it. Every failure
becomes an exit status and at most two lines on stderr: 1 for a ``ConfideError``, 2 for wrong
usage, 70 for a fault of confide itself, 130 for Ctrl-C (or SIGTERM, or a closed terminal: what a
command started ends with it), 141 for a reader that went away. A traceback is shown only when
``CONFIDE_DEBUG=1`` asks for it, since it may quote private text.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from . import __version__
from .common.errors import ConfideError, missing_extra

_EXTRA = "simulation"
_SIMULATIONS = ("assets", "simulate", "tune", "bench", "doctor")  # the commands of that room
EXIT_FAILED = 1
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE


def main() -> None:
    """The console script ``confide``."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # One that is ignored stays so: nohup.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.exit(run(lambda: build_app()()))


class _Argument(typer.core.TyperArgument):
    """One whose help is shown: click 8.5 has a help of its own for arguments, and empties that of
    typer 0.20, where flwr holds us."""

    def __init__(self, *, help: str | None = None, **rest: Any) -> None:  # noqa: A002 - typer's name
        super().__init__(help=help, **rest)
        self.help = help


def build_app() -> typer.Typer:
    """The command line with the commands of every room."""
    vars(typer.main)["TyperArgument"] = _Argument
    from .client.cli import add_commands as add_holder
    from .common.cli import add_commands as add_budget
    from .server.cli import add_commands as add_coordinator

    try:
        from .simulations.cli import add_commands as add_simulations
    except ModuleNotFoundError as error:
        if error.name != "confide.simulations":
            raise
        add_simulations = _without_simulations

    app = typer.Typer(
        name="confide",
        help="Fine-tune language models on private text that never leaves its holder.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for add_commands in (add_simulations, add_coordinator, add_holder, add_budget):
        add_commands(app)
    return app


def _without_simulations(app: typer.Typer) -> None:
    """What the command line has where the room ``simulations`` was left out of an install."""
    from .server.deploy.cli import commands

    server = commands()
    for place, name in [(app, name) for name in _SIMULATIONS] + [(server, "run")]:
        passed = {"ignore_unknown_options": True, "allow_extra_args": True}
        place.command(name, help=f"Needs the extra {_EXTRA!r}.", context_settings=passed)(_missing)
    app.add_typer(server, name="server")


def _missing(_: typer.Context) -> None:
    raise missing_extra("confide.simulations", _EXTRA)


def run(app: Callable[[], object]) -> int:
    """Run ``app`` and turn whatever it raises into an exit status.

    Standard output is flushed here, so that a closed pipe or a full disk is found while there is
    still someone to say so.
    """
    try:
        status = _status_of(app)
        sys.stdout.flush()
    except ConfideError as error:
        _say(f"error [{error.code}] {error.message}", error.hint)
        status = EXIT_FAILED
    except KeyboardInterrupt:
        _say("Interrupted.")
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        status = EXIT_PIPE_CLOSED
    except Exception as error:  # noqa: BLE001 - the last resort of the process
        status = _fault(error)
    return status


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"confide {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of ``confide`` itself; the commands belong to the rooms."""


def _status_of(app: Callable[[], object]) -> int:
    """The exit status that the app chose.

    typer leaves by SystemExit, also after Ctrl-C and a closed pipe; those two are told apart here.
    """
    try:
        app()
    except SystemExit as leave:
        if leave.code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt from leave
        if isinstance(leave.__context__, BrokenPipeError):
            raise leave.__context__ from None
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return 0


def _fault(error: Exception) -> int:
    """A full disk has a code; anything else is a fault of ours, told without its message."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _drop_output()
        where = f" at {error.filename}" if error.filename else ""
        _say(
            f"error [disk.full] No space is left on the device{where}.",
            "Free some space and run the command again; what was there before is untouched.",
        )
        return EXIT_FAILED
    _say(
        f"error [internal] {type(error).__name__} {_place(error)}: a fault of confide itself.",
        "Set CONFIDE_DEBUG=1 to see the traceback; it may quote your data.",
    )
    return EXIT_FAULT


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "somewhere"


def _say(line: str, hint: str = "") -> None:
    if os.environ.get("CONFIDE_DEBUG") == "1":
        traceback.print_exc()
    print(line, file=sys.stderr)
    if hint:
        print(hint, file=sys.stderr)


def _drop_output() -> None:
    """Send what is still buffered to nowhere, or the interpreter would complain at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    main()
