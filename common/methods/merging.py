"""The base of methods that average the holders' products themselves, and add to the frozen weights
what the factors cannot hold (``fedex``, ``flora``).

Base and adapter together move by exactly the mean of the holders' products. Without noise alone:
what is added would be the noise of B times that of A, in every round, and nothing takes it out
again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from .method import NO_HEAD, NOT_ALL, Arrived, Method, Moved, Noise, Only

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapter.schema import AdapterSchema, Shapes
    from ..settings import Settings

_NOISY = (
    "adds products of noisy factors to the frozen weights, the noise of one times that of the other"
)
_OTHERWISE = (
    "Set aggregate.method = 'fedsvd', or 'flexlora' for holders of different rank; without"
    " noise (privacy.trust = 'off') it is exact."
)


class Merging(Method):
    """The holders' products are averaged; ``after`` says what the factors are next."""

    trains = "AB"
    merges = True
    noise = Noise("refused", f"It {_NOISY}, and nothing takes it out again.", _NOISY, _OTHERWISE)
    only = (
        Only(
            "aggregate.optimizer",
            ("none",),
            "{key} = {value!r} steps along the factors, not along the products, with"
            " aggregate.method = {method!r}.",
        ),
        Only(
            "aggregate.robust",
            ("mean",),
            "{key} = {value!r} combines factors, not the products that are averaged with"
            " aggregate.method = {method!r}.",
            "Set aggregate.robust = 'mean', or another method, such as 'fedsvd'.",
        ),
        Only(
            "privacy.trust",
            ("off",),
            f"aggregate.method = {{method!r}} {_NOISY}, but {{key}} = {{value!r}}.",
            _OTHERWISE,
        ),
        Only(
            "round.patience",
            (0,),
            "{key} = {value!r} keeps the adapter of an earlier round, but aggregate.method ="
            " {method!r} has added the later ones to the frozen weights.",
        ),
        NOT_ALL,
        NO_HEAD,
    )

    @abstractmethod
    def after(self, moved: Mapping[str, Tensor], seed: str) -> dict[str, Tensor]:
        """The adapter as it goes down next, of the mean of the holders' factors, by name; what it
        holds of the mean of their products is not added to the frozen weights."""

    def combine(self, arrived: Arrived) -> Moved | None:
        from ..adapter.schema import flatten, unflatten
        from .products import mean_moved, mean_product, product_shapes, products_of

        schema, added = arrived.schema, product_shapes(arrived.schema)
        adapter = unflatten(arrived.adapter, schema.shapes)
        merged = unflatten(arrived.merged, added)
        changes = {
            who: unflatten(arrived.step * change, schema.trained_shapes)
            for who, change in arrived.changes.items()
        }
        total = mean_product(adapter, changes)
        after = self.after(mean_moved(adapter, changes), arrived.seed)
        kept = products_of(after)
        more = {path: (merged[path] + total[path] - kept[path]).float() for path in merged}
        return Moved(flatten(after, schema.shapes), flatten(more, added))

    def added(self, schema: AdapterSchema) -> Shapes:
        from .products import product_shapes

        return product_shapes(schema)

    def check_model(self, schema: AdapterSchema) -> None:
        from .products import check_size

        check_size(schema)

    def outcome(
        self, adapter: Mapping[str, Tensor], merged: Mapping[str, Tensor], scale: float
    ) -> dict[str, Tensor] | None:
        from .products import factored

        return factored(adapter, merged, scale)

    def as_saved(self, settings: Settings, adapter: Mapping[str, Tensor]) -> Settings:
        rank = next(
            len(value) for name, value in adapter.items() if name.endswith(".lora_A.weight")
        )
        return replace(settings, lora=replace(settings.lora, rank=rank, alpha=float(rank)))
