"""The promise and its book-keeping: one plan, its noise, its accounting, its ledger, its words.

Nothing here imports torch or reads private text. A plan makes sampler, noise and accounting
event out of the same numbers; the ledger is charged before anything that it pays for happens.
"""
