"""The cryptography of a secure sum: numbers on a ring, keys that holders make, masks that open.

Nothing here knows Flower, torch or a text. docs/secure-sum.md has the protocol, its proof and what
it does not cover.
"""
