"""Measures what an encoder-decoder model takes that generates, on the meta device.

A token of a source leaves keys and values in the decoder's cross-attention, a token of a reply in
its self-attention; of the two the larger counts for every token. What the encoder made of a source
stays too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.placement.meta import AsOnDevices, LiveBytes
from predictor.placement.plan import ROOM_FOR_PADDING
from predictor.placement.probe import SAMPLING_COPIES, Probe, by_formula

_SOURCE, _TARGET = 8, 4
"""Tokens of the pass whose cache is measured."""

_SHORT = 16
"""Tokens of a short source."""


def probe_paired(
    model: PreTrainedModel,
    blocks: Sequence[str],
    *,
    max_model_len: int,
    chunk: int,
    rows: int,
) -> Probe:
    """Returns the cache per block and the activations of a model on the meta device.

    Args:
        model: The model, on the meta device.
        blocks: The names of its blocks, the encoder's first.
        max_model_len: Tokens of the longest source and its reply.
        chunk: Most tokens of a pass, padding included; at least `max_model_len`.
        rows: Most sequences of a pass.
    """
    try:
        by_layer = _cache_per_token(model)
        several = max(1, min(rows, chunk // _SHORT))
        peaks = [_peak(model, 1, max_model_len), _peak(model, several, _SHORT)]
    # Models fail on meta in every way there is: data-dependent shapes, `.item()`, missing kernels.
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError):
        return by_formula(model, len(blocks), max_model_len, chunk)
    config: Any = model.config
    kept = [0] * (len(blocks) - len(by_layer)) + by_layer
    kept[-len(by_layer)] += int(config.hidden_size) * model.dtype.itemsize  # of the encoder
    # A layer's keys and values are copied where a token is added, or where one of several ends.
    copied = ROOM_FOR_PADDING * max(kept)
    logits = int(config.vocab_size) * 4 * SAMPLING_COPIES
    return Probe(
        tuple(kept),
        (0,) * len(blocks),
        max(peaks) + copied * max_model_len + logits,
        copied,
        measured=True,
    )


def _cache_per_token(model: PreTrainedModel) -> list[int]:
    """Bytes that each layer of the decoder keeps of a token."""
    cache = _run(model, 1, _SOURCE, _TARGET).past_key_values
    return [
        max(_bytes(own) // _TARGET, _bytes(cross) // _SOURCE)
        for own, cross in zip(
            cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True
        )
    ]


def _peak(model: PreTrainedModel, rows: int, source: int) -> int:
    """Bytes alive at the worst moment of a pass besides the model and what it keeps."""
    weights = {weight.untyped_storage() for weight in model.parameters()}
    with LiveBytes(besides=weights) as live:
        live.count(model.buffers())
        buffers = live.now
        output = _run(model, rows, source, 1)
    caches = (
        output.past_key_values.self_attention_cache,
        output.past_key_values.cross_attention_cache,
    )
    held = sum(_bytes(layer) for cache in caches for layer in cache.layers)
    return int(max(live.peak - buffers - held, 0))


def _run(model: PreTrainedModel, rows: int, source: int, target: int) -> Any:
    ids, decoders = (
        torch.zeros(rows, count, dtype=torch.long, device="meta") for count in (source, target)
    )
    called: Any = model
    with torch.no_grad(), AsOnDevices(padded=True):
        return called(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=decoders,
            use_cache=True,
        )


def _bytes(layer: Any) -> int:
    return int(layer.keys.nbytes + layer.values.nbytes)
