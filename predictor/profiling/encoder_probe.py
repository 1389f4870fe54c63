"""Measure the activations of a model with an encoder task, on the meta device.

Its forward passes keep nothing, so there is no cache. The peak of a forward pass is measured for
the two extremes of a batch of `tokens`: the longest texts, and many short ones. Both have masked
padding, because kernels and masks then take more memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.private.forward_arguments import forward_arguments
from predictor.profiling.meta_device import FAILURES, DeviceBehavior, measure_peak
from predictor.profiling.probe import Probe

_SHORT = 16
"""Tokens of a short text."""

_RESULT_COPIES = 4
"""Float32 copies of a forward pass's results: cast, as probabilities, moved, and kept a while."""


def probe_encoder(
    model: PreTrainedModel, blocks: int, *, max_model_len: int, tokens: int, rows: int
) -> Probe:
    """Return the activations of a model on the meta device.

    Args:
        model: The model, on the meta device.
        blocks: How many blocks it has.
        max_model_len: Tokens of the longest text.
        tokens: Most tokens of a forward pass, padding included; at least `max_model_len`.
        rows: Most texts of a forward pass.
    """
    none = (0,) * blocks
    try:
        peaks = [_peak(model, *shape) for shape in largest_shapes(tokens, max_model_len, rows)]
    except FAILURES:
        return Probe(none, none, _by_formula(model, max_model_len, tokens), 0, measured=False)
    return Probe(none, none, max(peaks), 0, measured=True)


def count_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model has learned positions for; None if it has none.

    Models like RoBERTa count positions from the one after the padding token's
    (``create_position_ids...`` in ``modeling_roberta.py``), so that some of their embeddings are
    never used.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None


def largest_shapes(tokens: int, longest: int, rows: int) -> list[tuple[int, int]]:
    """Return the two extreme shapes of a forward pass, as rows and their length.

    Args:
        tokens: Most tokens of a forward pass, padding included.
        longest: Tokens of the longest text.
        rows: Most texts of a forward pass.
    """
    return sorted({(max(1, min(rows, tokens // length)), length) for length in (longest, _SHORT)})


def _peak(model: PreTrainedModel, rows: int, length: int) -> int:
    """Return the most bytes alive in a forward pass without the model, with copies of results."""

    def run() -> Any:
        with torch.no_grad(), DeviceBehavior(padded=True), _with_padding(model.config):
            return model(**_inputs(model, rows, length))

    results, peak = measure_peak(model, run)
    kept = sum(value.numel() * 4 for value in results.to_tuple() if isinstance(value, torch.Tensor))
    return int(peak + _RESULT_COPIES * kept)


@contextlib.contextmanager
def _with_padding(config: Any) -> Iterator[None]:
    """Set a padding token if a config has none; decoders with a task head need one."""
    before = config.pad_token_id
    config.pad_token_id = 0 if before is None else before
    try:
        yield
    finally:
        config.pad_token_id = before


def _inputs(model: PreTrainedModel, rows: int, length: int) -> dict[str, Any]:
    shape = (rows, length)
    ids = torch.zeros(shape, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "use_cache" in forward_arguments(model):
        inputs["use_cache"] = False
    return inputs


def _by_formula(model: PreTrainedModel, max_model_len: int, tokens: int) -> int:
    """Return the textbook size: two blocks' activations, the scores of all heads, the results."""
    config: Any = model.config
    hidden = int(getattr(config, "hidden_size", None) or getattr(config, "dim", 0) or 1024)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    itemsize = model.dtype.itemsize
    wide = max(int(getattr(config, "vocab_size", 0)), hidden)
    activations = tokens * (16 * hidden + 4 * inner) * itemsize
    scores = heads * tokens * max_model_len * (itemsize + 4)
    return activations + scores + _RESULT_COPIES * 4 * tokens * wide
