"""Measure KV cache and activations of a decoder by running it on the meta device.

On the meta device an operation creates tensors with shapes but no memory, so a forward pass of a
model with 176 billion parameters takes a third of a second. It yields the cache's true shapes
(`num_key_value_heads` is wrong by 71 times for Falcon-7B, and by 28 for multi-head latent
attention) and the most bytes that are alive at one time. If a model cannot run on meta, formulas
from its config are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from predictor.errors import ConfigurationError
from predictor.live_bytes import LiveBytes
from predictor.placement.demand import ATTENTION_PADDING_FACTOR
from predictor.private.torch import tree_leaves
from predictor.private.transformers import cache_layer_types
from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.meta_device import FAILURES, DeviceBehavior, cache_layer

TOKEN_CACHE_TYPES = frozenset({"full_attention", "sliding_attention"})
"""Types of layers whose keys and values the engine caches token by token."""

SAMPLING_COPIES = 8
"""Copies of one row of float32 logits during sampling: sort with indices, softmax, cumsum..."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The sizes that were measured, in bytes.

    Attributes:
        kv_per_token: For each block, the cache of one more token of one sequence.
        kv_fixed: For each block, the cache of a sequence without tokens. It is the whole cache if
            that does not grow (sliding windows, state-space layers).
        activations: Most bytes alive in a forward pass, without weights and cache:
            of one chunk at the end of a sequence of `max_model_len` tokens, or of the most
            sequences that together have as many tokens and padding (`ATTENTION_PADDING_FACTOR`).
            The keys and values that a layer gathers from the cache for attention are included.
        activations_per_token: Additional bytes for each further token in the cache.
        measured: False if formulas were used.
    """

    kv_per_token: tuple[int, ...]
    kv_fixed: tuple[int, ...]
    activations: int
    activations_per_token: int
    measured: bool


def probe(
    model: PreTrainedModel,
    blocks: int,
    *,
    max_model_len: int,
    chunk: int,
    rows: int = 1,
    deduplicator: BlockDeduplicator | None = None,
) -> Probe:
    """Return the cache per block and the activations of a model on the meta device.

    The cache is measured at a quarter, half and full length. If it grows linearly, the line is
    exact. If it does not (a sliding window is full), its size at full length counts for every
    length. So it is exact at `max_model_len` and never too small for shorter sequences.

    Args:
        model: The model, on the meta device.
        blocks: How many blocks it has.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of the forward pass whose activations are measured.
        rows: Most sequences of a forward pass.
        deduplicator: Its blocks by kind, a few of which are executed; None executes every block.
    """
    lengths = [max(1, max_model_len * quarters // 4) for quarters in (1, 2, 4)]
    try:
        run = _Run(model, deduplicator or BlockDeduplicator())
        caches = [run.forward(1, tokens, run.empty()) for tokens in lengths]
        sizes = [_cache_bytes(cache, blocks) for cache in caches]
        gathered = max(map(_gathered_per_token, caches[-1].layers), default=0)
        activations, per_token = _activations(
            run, caches[-1], _Shape(max_model_len, chunk, rows), gathered
        )
    except FAILURES:
        return by_formula(model, blocks, max_model_len, chunk)
    slopes = tuple(_slope(lengths, block) for block in zip(*sizes, strict=True))
    fixed = tuple(full - slope * lengths[-1] for full, slope in zip(sizes[-1], slopes, strict=True))
    return Probe(slopes, fixed, activations, per_token, measured=True)


def caches_every_token(model: PreTrainedModel) -> bool:
    """Return whether all layers cache keys and values of the whole sequence.

    Sliding windows do too: the engine keeps tokens that have left the window, and masks hide them.
    """
    return set(cache_layer_types(model)) <= TOKEN_CACHE_TYPES


@dataclass(frozen=True, slots=True)
class _Shape:
    max_model_len: int
    chunk: int
    rows: int


def _slope(lengths: Sequence[int], sizes: Sequence[int]) -> int:
    """Return the bytes per token of the line through three sizes; 0 if they are on no line."""
    (a, b, c), (x, y, z) = lengths, sizes
    slope = (z - y) // max(1, c - b)
    return slope if y - x == slope * (b - a) and z - y == slope * (c - b) else 0


class _Run:
    """Forward passes of a model on the meta device."""

    def __init__(self, model: PreTrainedModel, deduplicator: BlockDeduplicator) -> None:
        self._model = model
        self.caches_every_token = caches_every_token(model)
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self._deduplicator = deduplicator
        self._weights = {weight.untyped_storage() for weight in model.parameters()}
        accepted = inspect.signature(model.forward).parameters
        self._extra: Any = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def empty(self) -> Any:
        """Return a cache of whole sequences if the engine has one, else None."""
        return DynamicCache() if self.caches_every_token else None

    def forward(self, rows: int, tokens: int, past: Any) -> Any:
        """Return the cache after so many tokens of each row."""
        # Bytes are counted only if effects of blocks are replayed.
        if self._deduplicator.has_duplicates:
            return self._counted(rows, tokens, past)[0]
        return self._uncounted(rows, tokens, past)

    def peak(self, rows: int, tokens: int, past: Any) -> int:
        """Return the most bytes alive, without the weights and the resulting cache."""
        cache, worst = self._counted(rows, tokens, past)
        held = sum(tensor.nbytes for layer in cache.layers for tensor in _tensors_of(layer))
        return max(worst - held, 0)

    def _counted(self, rows: int, tokens: int, past: Any) -> tuple[Any, int]:
        """Return the cache after a forward pass, and the most bytes alive without the model."""
        with LiveBytes(excluded=self._weights) as live:
            live.count(self._model.buffers())
            buffers: int = live.now
            for layer in past.layers if past is not None else ():
                live.count(_tensors_of(layer))
            with self._deduplicator.deduplicated(live, past):
                cache = self._uncounted(rows, tokens, past)
        return cache, live.peak - buffers

    def _uncounted(self, rows: int, tokens: int, past: Any) -> Any:
        """Return the cache after a forward pass without a mask, whose values meta lacks."""
        ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
        inputs = {"input_ids": ids, "past_key_values": past, "use_cache": True}
        with torch.no_grad(), DeviceBehavior():
            return self._model(**inputs, **self._extra).past_key_values


def _cache_bytes(cache: Any, blocks: int) -> list[int]:
    sizes = [sum(tensor.nbytes for tensor in _tensors_of(layer)) for layer in cache.layers]
    if len(sizes) > blocks:
        raise ValueError("more cache layers than blocks")
    return sizes + [0] * (blocks - len(sizes))


def _tensors_of(layer: Any) -> Iterator[torch.Tensor]:
    content = [vars(layer)] if not isinstance(layer, dict) else [layer]
    seen: set[int] = set()
    for leaf in tree_leaves(content):
        if isinstance(leaf, torch.Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield leaf


def _activations(run: _Run, full: Any, shape: _Shape, gathered: int) -> tuple[int, int]:
    """Return the bytes of the largest forward pass, and their growth by tokens of a batch."""
    logits = run.vocabulary * 4 * SAMPLING_COPIES
    prefill = run.peak(1, shape.chunk, _resized(run, full, 1, shape.max_model_len - shape.chunk))
    if not run.caches_every_token:
        return prefill + logits, 0
    past = max(1, ATTENTION_PADDING_FACTOR * shape.max_model_len // shape.rows)
    short, long = (
        run.peak(shape.rows, 1, _resized(run, full, shape.rows, length))
        for length in (past, 2 * past)
    )
    per_token = gathered + max(0, long - short) // (shape.rows * past)
    worst = max(prefill, short) + gathered * ATTENTION_PADDING_FACTOR * shape.max_model_len
    return worst + logits, ATTENTION_PADDING_FACTOR * per_token


def _resized(run: _Run, full: Any, rows: int, tokens: int) -> Any:
    """Return a cache of so many rows and tokens: a full one resized, or that of a new run."""
    if tokens == 0:
        return run.empty()
    if not run.caches_every_token:
        return run.forward(1, tokens, None)
    cache = DynamicCache()
    for layer in full.layers:
        keys, values = (
            tensor.new_empty(rows, tensor.shape[1], tokens, tensor.shape[3])
            for tensor in (layer.keys, layer.values)
        )
        cache.layers.append(cache_layer(keys, values))
    return cache


def _gathered_per_token(layer: Any) -> int:
    """Return the bytes of one token's keys and values in a layer; 0 for other kinds of layers."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None:
        return 0
    held: int = keys.nbytes + values.nbytes
    return held // max(1, int(keys.shape[-2]))


def by_formula(model: PreTrainedModel, blocks: int, max_model_len: int, chunk: int) -> Probe:
    """Return the textbook sizes: keys and values of all heads, an unfused block's activations.

    Args:
        model: The model.
        blocks: How many blocks it has.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of a forward pass.

    Raises:
        ConfigurationError: Its config lacks the sizes.
    """
    config = model.config.get_text_config()
    heads = _number(config, "num_attention_heads") or 1
    kv_heads = _number(config, "num_key_value_heads") or heads
    hidden = _number(config, "hidden_size")
    head_dim = _number(config, "head_dim") or hidden // heads
    itemsize = model.dtype.itemsize
    inner = _number(config, "intermediate_size") or 4 * hidden
    copies = _number(config, "num_experts_per_tok") or 1
    activations = chunk * copies * (16 * hidden + 4 * inner) * itemsize
    activations += heads * chunk * max_model_len * (itemsize + 4)
    activations += _number(config, "vocab_size") * 4 * (chunk + SAMPLING_COPIES)
    per_token = 2 * kv_heads * head_dim * itemsize
    if not per_token:
        raise ConfigurationError(
            f"The KV cache of a {model.config.model_type!r} model can neither be measured nor "
            "computed from its config."
        )
    return Probe(
        (per_token,) * blocks,
        (0,) * blocks,
        activations + ATTENTION_PADDING_FACTOR * per_token * max_model_len,
        ATTENTION_PADDING_FACTOR * (per_token + heads * (itemsize + 4)),
        measured=False,
    )


def _number(config: Any, name: str) -> int:
    """Return the number of this name, the largest if layers differ; 0 if there is none."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    values = [getattr(layer, name, None) or 0 for layer in layers]
    return max(max(value) if isinstance(value, (list, tuple)) else int(value) for value in values)
