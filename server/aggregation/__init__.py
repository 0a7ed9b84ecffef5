"""Aggregation: accepted changes of one round -> the next adapter.

Every holder counts the same; sums run in float64 over holders in the order of their names, so the
result depends neither on the order of arrival nor on who was slow.
"""

from .optimizer import ServerOptimizer
from .robust import OUTLIER, Combined, combine, mean_change

__all__ = [
    "OUTLIER",
    "Combined",
    "ServerOptimizer",
    "combine",
    "mean_change",
]
