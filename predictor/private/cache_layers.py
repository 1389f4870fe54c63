"""The layers of transformers' caches: their kinds, and the cache that a model is given.

Read in transformers 5.23.0: ``cache_utils.py`` and ``generation/utils.py``. `transformers` in this
package declares what is used of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from predictor.private.forward_arguments import forward_arguments

__all__ = ["DummyLayer", "LinearAttentionCacheLayerMixin"]

TOKEN_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers that have keys and values of each token."""

INDEXED_KINDS = frozenset({"indexed_attention"})
"""Kinds of layers that have keys and values of each token, and keys of an indexer of them."""

STATE_KINDS = frozenset({"linear_attention", "conv"})
"""Kinds of layers that have a state of fixed size."""

HYBRID_KINDS = frozenset({"hybrid", "hybrid_sliding"})
"""Kinds of layers that have both."""

EMPTY_KINDS = frozenset({"dummy"})
"""Kinds of layers that have nothing of their own, such as those that share another's keys."""

_LAYERS = (CacheLayerMixin, LinearAttentionCacheLayerMixin, DummyLayer)

_WHOLE: dict[str, Any] = {
    **dict.fromkeys(TOKEN_KINDS, DynamicLayer),
    **dict.fromkeys(INDEXED_KINDS, DynamicIndexedLayer),
    **dict.fromkeys(STATE_KINDS, LinearAttentionLayer),
    **dict.fromkeys(HYBRID_KINDS, LinearAttentionAndFullAttentionLayer),
    **dict.fromkeys(EMPTY_KINDS, DummyLayer),
}
"""Layers that keep keys and values of all tokens, states, both, or nothing, by their kind."""

KINDS = frozenset(_WHOLE)
"""All kinds of layers that the engine has a cache for."""


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What a layer of the model keeps of a sequence.

    Attributes:
        kind: transformers' name of the kind, such as ``full_attention`` or ``linear_attention``.
        states: How many pairs of a convolution's and a recurrence's state it has; 0 for none.
        window: Positions that a token attends to at most, its own among them; 0 for all. A chunk of
            chunked attention has as many.
    """

    kind: str
    states: int = 0
    window: int = 0

    def window_within(self, longest: int) -> int:
        """Return the window if it is shorter than a sequence of so many tokens, else 0."""
        return self.window if 0 < self.window < longest else 0


def cache_layers(model: PreTrainedModel) -> tuple[CacheLayer, ...]:
    """Return the layers that a cache of the model's decoder may have."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    config: Any = model.config.get_text_config(decoder=True)
    kinds, options = get_layer_types_and_kwargs(config)
    return tuple(
        CacheLayer(kind, given.get("number_of_states", 0), given.get("sliding_window") or 0)
        for kind, given in zip(kinds, options, strict=True)
    )


def cache_argument(model: PreTrainedModel) -> str:
    """Return the name by which a model takes a cache; empty if it takes none."""
    accepted = forward_arguments(model)
    names = (name for name in ("past_key_values", "cache_params") if name in accepted)
    return next(names, "")


def takes_dynamic_cache(model: PreTrainedModel) -> bool:
    """Return whether `generate` gives the model a `DynamicCache`, and not a cache of its own."""
    is_default: Any = getattr(model, "_supports_default_dynamic_cache", None)
    return is_default is not None and bool(is_default())


def is_cache_layer(value: Any) -> bool:
    """Return whether a value or a class is a layer of a cache."""
    return issubclass(value, _LAYERS) if isinstance(value, type) else isinstance(value, _LAYERS)


def whole_sequence_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return an empty cache whose layers keep all tokens, also those that have left a window.

    None is returned if the model has layers of another kind.
    """
    layers = cache_layers(model)
    if not KINDS.issuperset(layer.kind for layer in layers):
        return None
    cache = DynamicCache()
    cache.layers = [
        _WHOLE[layer.kind](**({"number_of_states": layer.states} if layer.states else {}))
        for layer in layers
    ]
    return cache


def own_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return the empty cache that `generate` gives the model; None if the model makes its own.

    Its windows hold no more than their own tokens. In `generate` they are views of a whole prompt,
    which stays in memory until the next token.
    """
    if not takes_dynamic_cache(model):
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [_with_own_memory(layer) for layer in cache.layers]
    return cache


_SLIDING: Any = DynamicSlidingWindowLayer
_HYBRID_SLIDING: Any = LinearAttentionAndSlidingWindowAttentionLayer


class _OwnMemory:
    """A layer whose window is no view of the tokens that came before it."""

    keys: Any
    values: Any

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Add new keys and values; return those of the window and the new ones."""
        both = super().update(*args, **kwargs)  # type: ignore[misc]
        self.keys, self.values = self.keys.clone(), self.values.clone()
        return both


class _Window(_OwnMemory, _SLIDING):  # type: ignore[misc]
    """The keys and values of a window."""


class _HybridWindow(_OwnMemory, _HYBRID_SLIDING):  # type: ignore[misc]
    """The same beside states."""


def _with_own_memory(layer: Any) -> Any:
    """Return a layer that holds its window only; any other layer as it is."""
    kind = {_SLIDING: _Window, _HYBRID_SLIDING: _HybridWindow}.get(type(layer))
    if kind is None:
        return layer
    held = kind(sliding_window=layer.sliding_window)
    vars(held).update(vars(layer))
    return held


_WITH_WINDOW: dict[type, Any] = {
    DynamicLayer: _Window,
    LinearAttentionAndFullAttentionLayer: _HybridWindow,
}


def with_window(layer: Any, window: int, tokens: int) -> Any:
    """Return a layer of transformers that keeps a window, with the attributes of one that does not.

    Args:
        layer: A layer of `whole_sequence_cache`, with the keys and values that the window has.
        window: Positions that a token attends to, its own among them.
        tokens: Tokens of the sequence so far.
    """
    kept = _WITH_WINDOW[type(layer)](sliding_window=window)
    vars(kept).update(vars(layer))
    kept.cumulative_length = tokens
    return kept
