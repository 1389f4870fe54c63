"""Measure KV cache and activations of a generative encoder-decoder, on the meta device.

A token of a source leaves keys and values in the decoder's cross-attention, a token of a reply in
its self-attention. The larger of the two counts for every token. The encoder's output for a source
is kept too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from predictor.placement.demand import ATTENTION_PADDING_FACTOR
from predictor.profiling.encoder_probe import largest_shapes
from predictor.profiling.meta_device import FAILURES, DeviceBehavior, measure_peak
from predictor.profiling.probe import SAMPLING_COPIES, Probe, by_formula

_SOURCE, _TARGET = 8, 4
"""Tokens of the forward pass whose cache is measured."""

MOST_PADDING = 0.25
"""Most padding of sources that are encoded together, as a fraction of their tokens. The padding
stays in the cache."""


def probe_encoder_decoder(
    model: PreTrainedModel,
    blocks: Sequence[str],
    *,
    max_model_len: int,
    source: int,
    chunk: int,
    rows: int,
) -> Probe:
    """Return the cache per block and the activations of a model on the meta device.

    Args:
        model: The model, on the meta device.
        blocks: The names of its blocks, the encoder's first.
        max_model_len: Tokens of the longest source and its reply.
        source: Tokens of the longest source.
        chunk: Most tokens of a forward pass, padding included; at least `max_model_len`.
        rows: Most sequences of a forward pass.
    """
    try:
        by_layer, encoded, vocabulary = _kept_per_token(model)
        peaks = [_peak(model, *shape) for shape in largest_shapes(chunk, source, rows)]
    except FAILURES:
        return by_formula(model, len(blocks), max_model_len, chunk)
    kept = [0] * (len(blocks) - len(by_layer)) + by_layer
    kept[-len(by_layer)] += encoded
    kept = [math.ceil(size * (1 + MOST_PADDING)) for size in kept]
    # A layer's keys and values are copied when a token is added, or when one of several ends.
    copied = ATTENTION_PADDING_FACTOR * max(kept)
    return Probe(
        tuple(kept),
        (0,) * len(blocks),
        max(peaks) + copied * max_model_len + vocabulary * 4 * SAMPLING_COPIES,
        copied,
        measured=True,
    )


def _kept_per_token(model: PreTrainedModel) -> tuple[list[int], int, int]:
    """Return the bytes kept of a token by decoder layer and by the encoder, and the vocabulary."""
    output, cache = _run(model, 1, _SOURCE, _TARGET)
    encoded = output.encoder_last_hidden_state
    layers = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
    by_layer = [max(_bytes(own) // _TARGET, _bytes(cross) // _SOURCE) for own, cross in layers]
    return by_layer, int(encoded.nbytes) // _SOURCE, int(output.logits.shape[-1])


def _peak(model: PreTrainedModel, rows: int, source: int) -> int:
    """Return the most bytes alive in a forward pass without the model and its caches."""
    (_, cache), peak = measure_peak(model, lambda: _run(model, rows, source, 1))
    caches = (cache.self_attention_cache, cache.cross_attention_cache)
    held = sum(_bytes(layer) for part in caches for layer in part.layers)
    return max(peak - held, 0)


def _run(
    model: PreTrainedModel, rows: int, source: int, target: int
) -> tuple[Any, EncoderDecoderCache]:
    """Return the output and the cache. Switch's encoder takes no argument ``use_cache``."""
    ids, decoder_ids = (
        torch.zeros(rows, count, dtype=torch.long, device="meta") for count in (source, target)
    )
    called: Any = model
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad(), DeviceBehavior(padded=True):
        output = called(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=decoder_ids,
            past_key_values=cache,
        )
    return output, cache


def _bytes(layer: Any) -> int:
    return int(layer.keys.nbytes + layer.values.nbytes)
