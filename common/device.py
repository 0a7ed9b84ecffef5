"""Where the model is computed on this machine: ``CONFIDE_DEVICE`` = cpu, its default, cuda or auto.

A matter of the machine, never of a run: no coordinator chooses it, and nothing of the promise
depends on it. Batches, noise and adapters are drawn and kept on the processor everywhere; the model
and what it computes lie on the device. Before a holder is charged for anything, the per-example
gradients are held against those of each example alone on that very device (``client.self_check``).
On an accelerator sums come out in another order from time to time, so that a run there does not
repeat itself bit for bit.
"""

from __future__ import annotations

import os

import torch

from .errors import ConfideError, nearest

_NAMES = ("cpu", "cuda", "auto")


def chosen_device() -> torch.device:
    """The device of this process.

    Raises:
        ConfideError: ``device.unknown``, or ``device.missing`` for one that is not there.
    """
    name = os.environ.get("CONFIDE_DEVICE") or "cpu"
    if name not in _NAMES:
        raise ConfideError(
            "device.unknown", f"CONFIDE_DEVICE = {name!r:.100}.", nearest(name[:100], _NAMES)
        )
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfideError(
            "device.missing",
            "CONFIDE_DEVICE = 'cuda', but torch finds no such device on this machine.",
            "Set it to auto or cpu, or install a torch that is made for the device.",
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")
