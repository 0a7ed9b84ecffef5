"""Which text a ledger was charged for, without saying what is in it.

The name of a text is a hash of its file's bytes under the ledger's secret key, so that two ledgers
of one file cannot be linked, and an export of the ledger lets nobody test a guess of the file; only
who has the ledger file itself can. It never leaves in a reply. Imports no torch.
"""

from __future__ import annotations

import hashlib
import hmac


def identity_of(content: bytes, key: bytes) -> str:
    """Keyed hash of a file's bytes (HMAC-SHA-256), hex."""
    return hmac.new(key, content, hashlib.sha256).hexdigest()
