"""What of a trained adapter leaves its holder: all of it, but for ``fedsa``'s B.

Both sides make the schema of an update out of the model's own by this one rule, and its digest is
what a task names.
"""

from __future__ import annotations

from dataclasses import replace

from .adapter import AdapterSchema

PERSONAL = "fedsa"  # the value of ``aggregate.method`` under which B stays


def leaving(schema: AdapterSchema, method: str) -> AdapterSchema:
    """The schema of an update, whose ``trained`` are the tensors that leave."""
    if method != PERSONAL:
        return schema
    return replace(schema, trained=frozenset(n for n in schema.trained if not is_personal(n)))


def is_personal(name: str) -> bool:
    """Whether a tensor is a B of LoRA, on a linear layer or on an embedding."""
    return "lora_B" in name or "lora_embedding_B" in name
