"""Per-example gradients by one backward pass, written where Opacus's DPOptimizer reads them."""

from .engine import PerExample

__all__ = ["PerExample"]
