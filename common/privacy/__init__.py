"""The promise and its book-keeping: one plan, its noise, its accounting, its ledger, its words.

Nothing here imports torch or reads private text. A plan makes sampler, noise and accounting
event out of the same numbers; the ledger is charged before anything that it pays for happens.
"""

from enum import StrEnum


class Unit(StrEnum):
    """What one change of the data set is, and so what is drawn and clipped as a whole."""

    RECORD = "record"
    PERSON = "person"  # all records of one person at one holder
    HOLDER = "holder"  # all that one holder has; its whole update is clipped


UNITS = tuple(unit.value for unit in Unit)
