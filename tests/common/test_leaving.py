"""What leaves a holder: all that is trained, but for the B of personal adapters."""

from __future__ import annotations

import pytest

from confide.common.adapter import AdapterSchema
from confide.common.leaving import leaving

A, B = "m.lora_A.weight", "m.lora_B.weight"
EMBEDDED_A, EMBEDDED_B = "m.lora_embedding_A", "m.lora_embedding_B"
HEAD = "m.classifier.weight"
NAMES = (A, B, EMBEDDED_A, EMBEDDED_B, HEAD)
SCHEMA = AdapterSchema(shapes=tuple((n, (2, 2)) for n in NAMES), trained=frozenset(NAMES))


def test_under_fedsa_every_b_stays() -> None:
    found = leaving(SCHEMA, "fedsa")
    assert found.trained == {A, EMBEDDED_A, HEAD}
    assert found.shapes == SCHEMA.shapes
    assert found.digest != SCHEMA.digest


@pytest.mark.parametrize("method", ["lora", "ffa", "fedsvd", "flora"])
def test_under_every_other_method_all_leaves(method: str) -> None:
    assert leaving(SCHEMA, method) is SCHEMA
