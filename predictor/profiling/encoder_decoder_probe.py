"""Measures what an encoder-decoder model takes that generates, on the meta device.

A token of a source leaves keys and values in the decoder's cross-attention, a token of a reply in
its self-attention; of the two the larger counts for every token. What the encoder made of a source
stays too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.placement.demand import ATTENTION_PADDING_FACTOR
from predictor.profiling.decoder_probe import SAMPLING_COPIES, Probe, by_formula
from predictor.profiling.encoder_probe import largest_shapes
from predictor.profiling.meta_device import FAILURES, AsOnDevices, peak_beside

_SOURCE, _TARGET = 8, 4
"""Tokens of the pass whose cache is measured."""

MOST_PADDING = 0.25
"""Most padding of sources that are read together, as a fraction of their tokens; it stays."""


def probe_encoder_decoder(
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
        by_layer, read, vocabulary = _kept_per_token(model)
        peaks = [_peak(model, *shape) for shape in largest_shapes(chunk, max_model_len, rows)]
    except FAILURES:
        return by_formula(model, len(blocks), max_model_len, chunk)
    kept = [0] * (len(blocks) - len(by_layer)) + by_layer
    kept[-len(by_layer)] += read
    kept = [math.ceil(size * (1 + MOST_PADDING)) for size in kept]
    # A layer's keys and values are copied where a token is added, or where one of several ends.
    copied = ATTENTION_PADDING_FACTOR * max(kept)
    return Probe(
        tuple(kept),
        (0,) * len(blocks),
        max(peaks) + copied * max_model_len + vocabulary * 4 * SAMPLING_COPIES,
        copied,
        measured=True,
    )


def _kept_per_token(model: PreTrainedModel) -> tuple[list[int], int, int]:
    """Bytes that each layer of the decoder keeps of a token, those of the encoder's; vocabulary."""
    output = _run(model, 1, _SOURCE, _TARGET)
    cache, read = output.past_key_values, output.encoder_last_hidden_state
    layers = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
    by_layer = [max(_bytes(own) // _TARGET, _bytes(cross) // _SOURCE) for own, cross in layers]
    return by_layer, int(read.nbytes) // _SOURCE, int(output.logits.shape[-1])


def _peak(model: PreTrainedModel, rows: int, source: int) -> int:
    """Bytes alive at the worst moment of a pass besides the model and what it keeps."""
    output, peak = peak_beside(model, lambda: _run(model, rows, source, 1))
    caches = (
        output.past_key_values.self_attention_cache,
        output.past_key_values.cross_attention_cache,
    )
    held = sum(_bytes(layer) for cache in caches for layer in cache.layers)
    return max(peak - held, 0)


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
