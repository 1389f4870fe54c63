"""transformers' layers of a cache that hold something else than keys and values.

Read in transformers 5.23.0: ``cache_utils.py``. `transformers` in this package declares what is
used of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DummyLayer, LinearAttentionCacheLayerMixin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CacheLayer", "DummyLayer", "LinearAttentionCacheLayerMixin", "cache_layers"]


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What a layer of the model keeps of a sequence.

    Attributes:
        kind: transformers' name of the kind, such as ``full_attention`` or ``linear_attention``.
        states: How many pairs of a convolution's and a recurrence's state it has; 0 for none.
    """

    kind: str
    states: int = 0


def cache_layers(model: PreTrainedModel) -> tuple[CacheLayer, ...]:
    """Return the layers that a cache of the model's decoder may have."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    config: Any = model.config.get_text_config(decoder=True)
    kinds, options = get_layer_types_and_kwargs(config)
    return tuple(
        CacheLayer(kind, given.get("number_of_states", 0))
        for kind, given in zip(kinds, options, strict=True)
    )


def takes_dynamic_cache(model: PreTrainedModel) -> bool:
    """Return whether `generate` gives the model a `DynamicCache`, and not a cache of its own."""
    is_default: Any = getattr(model, "_supports_default_dynamic_cache", None)
    return is_default is not None and bool(is_default())
