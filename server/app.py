"""The ServerApp: settings from Flower's run config, a grid for the transport, one call."""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..common.errors import ConfideError
from .deploy.members import names_here
from .deploy.receipts import memory_here
from .live import live_file
from .run import run
from .transport import GridTransport

logger = logging.getLogger("flwr")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do the run. A failure that a person can act on is one line, not a traceback; ``flwr run``
    has no exit status for it, so the run folder and ``confide report show`` tell."""
    logging.getLogger("confide").parent = logger
    logging.getLogger("confide").setLevel(logging.INFO)
    try:
        transport = GridTransport(grid, live_file(context.run_config))
        run(context.run_config, transport, names_here(), memory_here())
    except ConfideError as error:
        logger.error("%s", error)
