"""The layers of transformers' caches, and the cache of a model as the engine or the model has it.

Read in transformers 5.23.0: ``cache_utils.py`` and ``generation/utils.py``.
"""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from predictor.private.cache import takes_dynamic_cache

_LAYERS = (CacheLayerMixin, LinearAttentionCacheLayerMixin, DummyLayer)

_WHOLE: dict[str, Any] = {
    **dict.fromkeys(("full_attention", "sliding_attention", "chunked_attention"), DynamicLayer),
    **dict.fromkeys(("linear_attention", "conv"), LinearAttentionLayer),
    **dict.fromkeys(("hybrid", "hybrid_sliding"), LinearAttentionAndFullAttentionLayer),
    "dummy": DummyLayer,
}
"""Layers that keep keys and values of all tokens, states, both, or nothing, by their kind."""


def is_cache_layer(value: Any) -> bool:
    """Return whether a value or a class is a layer of a cache."""
    return issubclass(value, _LAYERS) if isinstance(value, type) else isinstance(value, _LAYERS)


def whole_sequence_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return an empty cache whose layers keep all tokens, also those that have left a window.

    None is returned if the model has layers of another kind.
    """
    from transformers.cache_utils import get_layer_types_and_kwargs

    config: Any = model.config.get_text_config(decoder=True)
    kinds, options = get_layer_types_and_kwargs(config)
    if not set(kinds) <= set(_WHOLE):
        return None
    cache = DynamicCache()
    cache.layers = [
        _WHOLE[kind](**_states(given)) for kind, given in zip(kinds, options, strict=True)
    ]
    return cache


def own_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return the empty cache that `generate` gives the model; None if the model makes its own."""
    if not takes_dynamic_cache(model):
        return None
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _states(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name == "number_of_states"}
