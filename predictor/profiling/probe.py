"""The sizes that a model was measured to need, and the textbook's where it cannot be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from predictor.errors import ConfigurationError
from predictor.placement.demand import ATTENTION_PADDING_FACTOR

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
        least_row_tokens: Tokens of prefill that take as much memory as a row of a few tokens. Some
            models pad every row to the chunk in which they compute a state.
        kv_windowed: For each block, the cache of a token that is within the window of its sequence;
            empty if all layers keep all tokens.
        window: Tokens of one sequence that layers with a window keep; 0 if all layers keep all.
        per_chunk_token: Additional bytes for each further token of the chunk, up to the largest
            one; 0 if there is no larger one.
    """

    kv_per_token: tuple[int, ...]
    kv_fixed: tuple[int, ...]
    activations: int
    activations_per_token: int
    measured: bool
    least_row_tokens: int = 1
    kv_windowed: tuple[int, ...] = ()
    window: int = 0
    per_chunk_token: int = 0


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
