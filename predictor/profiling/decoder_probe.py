"""Measures KV cache and activations by running the model on the meta device.

On the meta device an operation makes tensors with shapes but no memory, so a forward pass of a
176-billion-parameter model takes a third of a second. The cache's true shapes come out of it
(`num_key_value_heads` misleads: Falcon-7B by 71 times, multi-head latent attention by 28), and so
does the largest sum of bytes that are alive at one time. Where a model cannot run on meta,
formulas from its config serve.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from predictor.errors import ConfigurationError
from predictor.placement.demand import ATTENTION_PADDING_FACTOR
from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.meta_device import FAILURES, AsOnDevices, LiveBytes, filled

WHOLE_KINDS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that the engine keeps keys and values of, token by token."""

SAMPLING_COPIES = 8
"""Copies of one row of fp32 logits that sampling makes: sort with indices, softmax, cumsum..."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What running the model showed.

    Attributes:
        kv_per_token: For each block, bytes of cache for one more token of one sequence.
        kv_fixed: For each block, bytes of cache of a sequence of no tokens (the whole cache where
            it does not grow: sliding windows, state-space layers).
        activations: Bytes alive besides weights and cache at the worst moment of a forward pass:
            of one chunk at the end of a sequence of `max_model_len` tokens, or of the most
            sequences that together have as many tokens and padding (`ATTENTION_PADDING_FACTOR`).
            The keys and values that a layer gathers from the cache for attention are included.
        activations_per_token: Bytes more for each token more that the cache holds.
        measured: False where formulas were used.
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
    alike: BlockDeduplicator | None = None,
) -> Probe:
    """Returns the cache per block and the activations of a model on the meta device.

    The cache is measured at a quarter, half and full length. Where it grows linearly the line is
    exact; where it bends (a sliding window is full) its size at full length counts for every
    length. So it is never below the truth for shorter sequences and exact at `max_model_len`.

    Args:
        model: The model, on the meta device.
        blocks: How many blocks it has.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of the pass whose activations are measured.
        rows: Most sequences of a pass.
        alike: Its blocks by kind, of each of which few are run then; None runs every block.
    """
    lengths = [max(1, max_model_len * quarters // 4) for quarters in (1, 2, 4)]
    try:
        run = _Run(model, alike or BlockDeduplicator())
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


def kept_whole(model: PreTrainedModel) -> bool:
    """Returns whether all layers' caches are keys and values of the whole sequence.

    So it is for windows too: the engine keeps what has left them, and masks hide it.
    """
    config: Any = model.config.get_text_config(decoder=True)
    return set(get_layer_types_and_kwargs(config)[0]) <= WHOLE_KINDS


@dataclass(frozen=True, slots=True)
class _Shape:
    max_model_len: int
    chunk: int
    rows: int


def _slope(lengths: Sequence[int], sizes: Sequence[int]) -> int:
    """Bytes per token of the line through three sizes; 0 where they are on no line."""
    (a, b, c), (x, y, z) = lengths, sizes
    slope = (z - y) // max(1, c - b)
    return slope if y - x == slope * (b - a) and z - y == slope * (c - b) else 0


class _Run:
    """Passes of a model over the meta device."""

    def __init__(self, model: PreTrainedModel, alike: BlockDeduplicator) -> None:
        self._model = model
        self.kept_whole = kept_whole(model)
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self._alike = alike
        self._weights = {weight.untyped_storage() for weight in model.parameters()}
        takes = inspect.signature(model.forward).parameters
        self._extra: Any = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def empty(self) -> Any:
        """A cache that keeps whole sequences where the engine will; else the model's own choice."""
        return DynamicCache() if self.kept_whole else None

    def forward(self, rows: int, tokens: int, past: Any) -> Any:
        """The cache after so many tokens of each row."""
        # Only to repeat what a block did is there something to count.
        if self._alike.any:
            return self._counted(rows, tokens, past)[0]
        return self._uncounted(rows, tokens, past)

    def peak(self, rows: int, tokens: int, past: Any) -> int:
        """Bytes alive at the worst moment besides weights and what the cache holds after."""
        cache, worst = self._counted(rows, tokens, past)
        held = sum(tensor.nbytes for layer in cache.layers for tensor in _tensors_of(layer))
        return max(worst - held, 0)

    def _counted(self, rows: int, tokens: int, past: Any) -> tuple[Any, int]:
        """The cache after a pass, and the bytes alive at its worst besides the model itself."""
        with LiveBytes(besides=self._weights) as live:
            live.count(self._model.buffers())
            buffers: int = live.now
            for layer in past.layers if past is not None else ():
                live.count(_tensors_of(layer))
            with self._alike.few_run(live, past):
                cache = self._uncounted(rows, tokens, past)
        return cache, live.peak - buffers

    def _uncounted(self, rows: int, tokens: int, past: Any) -> Any:
        """The cache after a pass without an attention mask, whose values meta has not."""
        ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
        given = {"input_ids": ids, "past_key_values": past, "use_cache": True}
        with torch.no_grad(), AsOnDevices():
            return self._model(**given, **self._extra).past_key_values


def _cache_bytes(cache: Any, blocks: int) -> list[int]:
    sizes = [sum(tensor.nbytes for tensor in _tensors_of(layer)) for layer in cache.layers]
    if len(sizes) > blocks:
        raise ValueError("more cache layers than blocks")
    return sizes + [0] * (blocks - len(sizes))


def _tensors_of(layer: Any) -> Iterator[torch.Tensor]:
    held = [vars(layer)] if not isinstance(layer, dict) else [layer]
    seen: set[int] = set()
    for leaf in tree_leaves(held):
        if isinstance(leaf, torch.Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield leaf


def _activations(run: _Run, full: Any, shape: _Shape, gathered: int) -> tuple[int, int]:
    """The bytes of the worst pass, and how they grow with the tokens of a batch."""
    logits = run.vocabulary * 4 * SAMPLING_COPIES
    prefill = run.peak(1, shape.chunk, _resized(run, full, 1, shape.max_model_len - shape.chunk))
    if not run.kept_whole:
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
    """A cache like a full one, of so many rows and tokens; run anew where its form is unknown."""
    if tokens == 0:
        return run.empty()
    if not run.kept_whole:
        return run.forward(1, tokens, None)
    cache = DynamicCache()
    for layer in full.layers:
        keys, values = (
            tensor.new_empty(rows, tensor.shape[1], tokens, tensor.shape[3])
            for tensor in (layer.keys, layer.values)
        )
        cache.layers.append(filled(keys, values))
    return cache


def _gathered_per_token(layer: Any) -> int:
    """Bytes of one token's keys and values in a layer; 0 where the layer keeps something else."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None:
        return 0
    held: int = keys.nbytes + values.nbytes
    return held // max(1, int(keys.shape[-2]))


def by_formula(model: PreTrainedModel, blocks: int, max_model_len: int, chunk: int) -> Probe:
    """Returns the textbook sizes: keys and values of all heads, an unfused block's activations.

    Args:
        model: The model.
        blocks: How many blocks it has.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of a pass.

    Raises:
        ConfigurationError: Its config does not say enough.
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
    """The number of this name, the largest where layers differ; 0 where there is none."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    values = [getattr(layer, name, None) or 0 for layer in layers]
    return max(max(value) if isinstance(value, (list, tuple)) else int(value) for value in values)
