"""The ServerApp of a simulation: what a laboratory can look at is looked at, then the run is done.

The run's settings are the contract of every simulated holder, and each of them is held against it
before anything is trained: a record that does not fit would otherwise be left out in silence, as it
is at a real holder. Simulated holders are all there from the start, so that nobody waits for more.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..server.app import serve
from .ready import check_text

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """As ``confide.server.app``, of simulated holders."""
    serve(grid, context, check_text, patience=30.0)
