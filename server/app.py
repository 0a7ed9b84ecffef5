"""The ServerApp: settings from Flower's run config, a grid for the transport, one call."""

from __future__ import annotations

import logging
import math

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..common.errors import ConfideError
from .deploy.members import names_here, roster_here
from .deploy.receipts import memory_here
from .run import Check, run
from .run_folder import live_file
from .transport import GridTransport

logger = logging.getLogger("flwr")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do the run over real holders."""
    serve(grid, context)


def serve(
    grid: Grid, context: Context, check: Check | None = None, patience: float = math.inf
) -> None:
    """Do the run. A failure that a person can act on is one line, not a traceback; ``flwr run``
    has no exit status for it, so the run folder and ``confide report show`` tell.

    Args:
        check: of what this process can see of the holders' text, as in a simulation.
        patience: seconds in which holders may still come.
    """
    logging.getLogger("confide").parent = logger
    logging.getLogger("confide").setLevel(logging.INFO)
    try:
        transport = GridTransport(grid, live_file(context.run_config), patience)
        known, memory, roster = names_here(), memory_here(), roster_here()
        run(context.run_config, transport, known, memory, check, roster=roster)
    except ConfideError as error:
        logger.error("%s", error)
