"""What a holder's ledger is told of the text and of the code: hashes, and under which key."""

from __future__ import annotations

import dataclasses
import json

from confide.client.holder import Holder
from confide.client.text.corpus import identity_of
from confide.common.privacy.ledger import Ledger
from confide.common.wire.messages import Update, reply_to_bytes
from tests.client.conftest import Place


def test_the_text_is_named_by_a_hash_that_nobody_without_the_ledgers_key_can_test(
    place: Place,
) -> None:
    reply = place.holder.handle(place.task())
    assert isinstance(reply, Update)
    with Ledger.open(place.site.ledger, create=False) as ledger:
        identity, key, name = ledger.identity, ledger.identity_key, ledger.ledger_id
        told = json.dumps([e.payload for e in ledger.entries()])
    content = place.data.read_bytes()
    assert identity == identity_of(content, key)
    # What an auditor, a coordinator or a reader of an export knows is no key.
    for public in (name, name.lower(), "", identity, *json.loads(told)[0].values()):
        assert identity != identity_of(content, str(public).encode())
    for secret in (key.hex(), identity):
        assert secret.encode() not in reply_to_bytes(reply)
    assert key.hex() not in told


def test_the_code_that_trained_is_booked(place: Place) -> None:
    holder = Holder(dataclasses.replace(place.site, bundle="hash-of-the-bundle"))
    assert isinstance(holder.handle(place.task()), Update)
    with Ledger.open(place.site.ledger, create=False) as ledger:
        booked = [e.payload for e in ledger.entries() if e.payload["state"] == "reserved"]
    assert [payload["bundle"] for payload in booked] == ["hash-of-the-bundle"]
