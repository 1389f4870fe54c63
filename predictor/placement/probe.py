"""Measures KV cache and activations by running the model on the meta device.

On the meta device an operation makes tensors with shapes but no memory, so a forward pass of a
176-billion-parameter model takes a third of a second. The cache's true shapes come out of it
(`num_key_value_heads` misleads: Falcon-7B by 71 times, multi-head latent attention by 28), and so
does the largest sum of bytes that are alive at one time. Where a model cannot run on meta,
formulas from its config serve.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from predictor.errors import ConfigurationError

_GROUPED = (functional.grouped_mm, torch._grouped_mm)
"""The matrix products of experts, whose kernels on meta know bfloat16 alone."""

_ANSWERS = {torch.Tensor.__bool__: True, torch.Tensor.item: True, torch.Tensor.__contains__: False}
"""What a sequence without padding answers to "does the mask show all?" and "is padding in it?"."""

_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""The positional parameters of `scaled_dot_product_attention`."""

_SAMPLING_COPIES = 8
"""Copies of one row of fp32 logits that sampling makes: sort with indices, softmax, cumsum..."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What running the model showed.

    Attributes:
        kv_per_token: For each block, bytes of cache for one more token of one sequence.
        kv_fixed: For each block, bytes of cache of a sequence of no tokens (the whole cache where
            it does not grow: sliding windows, state-space layers).
        activations: Bytes alive besides weights and cache at the worst moment of a forward pass
            of one chunk at the end of a sequence of `max_model_len` tokens.
        measured: False where formulas were used.
    """

    kv_per_token: tuple[int, ...]
    kv_fixed: tuple[int, ...]
    activations: int
    measured: bool


def probe(model: PreTrainedModel, blocks: int, *, max_model_len: int, chunk: int) -> Probe:
    """Returns the cache per block and the activations of a model on the meta device.

    The cache is measured at a quarter, half and full length. Where it grows linearly the line is
    exact; where it bends (a sliding window is full) its size at full length counts for every
    length. So it is never below the truth for shorter sequences and exact at `max_model_len`.

    Args:
        model: The model, on the meta device.
        blocks: How many blocks it has.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of the pass whose activations are measured.
    """
    lengths = [max(1, max_model_len * quarters // 4) for quarters in (1, 2, 4)]
    try:
        sizes = [_cache_bytes(_forward(model, tokens), blocks) for tokens in lengths]
        activations = _activations(model, max_model_len, chunk)
    # Models fail on meta in every way there is: data-dependent shapes, `.item()`, missing kernels.
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError):
        return _by_formula(model, blocks, max_model_len, chunk)
    slopes = tuple(_slope(lengths, block) for block in zip(*sizes, strict=True))
    fixed = tuple(full - slope * lengths[-1] for full, slope in zip(sizes[-1], slopes, strict=True))
    return Probe(slopes, fixed, activations, measured=True)


def _slope(lengths: Sequence[int], sizes: Sequence[int]) -> int:
    """Bytes per token of the line through three sizes; 0 where they are on no line."""
    (a, b, c), (x, y, z) = lengths, sizes
    slope = (z - y) // max(1, c - b)
    return slope if y - x == slope * (b - a) and z - y == slope * (c - b) else 0


def _forward(model: PreTrainedModel, tokens: int, past: Any = None) -> Any:
    """Runs tokens of one sequence; without an attention mask, whose values meta has not."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    extra: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extra["logits_to_keep"] = 1
    with torch.no_grad(), _AsOnDevices():
        return model(input_ids=ids, past_key_values=past, use_cache=True, **extra).past_key_values


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


def _activations(model: PreTrainedModel, max_model_len: int, chunk: int) -> int:
    past_tokens = max_model_len - chunk
    past = _forward(model, past_tokens) if past_tokens else None
    with _LiveBytes() as live:
        live.count(itertools.chain(model.parameters(), model.buffers()))
        weights: int = live.now
        for layer in past.layers if past is not None else ():
            live.count(_tensors_of(layer))
        cache = _forward(model, chunk, past)
        full = sum(tensor.nbytes for layer in cache.layers for tensor in _tensors_of(layer))
    logits: int = model.config.get_text_config().vocab_size * 4 * _SAMPLING_COPIES
    return max(int(live.peak) - weights - full, 0) + logits


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages alive, by watching every operation's results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    def count(self, tensors: Iterator[torch.Tensor]) -> None:
        """Adds the storages of these tensors until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, count: int) -> None:
        self.now -= count


class _AsOnDevices(TorchFunctionMode):
    """What meta tensors would otherwise decide differently from real ones.

    Attention runs as on real devices, where fused kernels hold no matrix of scores (on meta, torch
    would choose the textbook form and count the scores of all heads). And a question to a mask,
    whose values meta has not, is answered as for a sequence that hides no token.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            named = dict(zip(_ATTENTION, args, strict=False)) | (kwargs or {})
            attend = _attend_fused if _is_fused(**named) else _attend_by_the_book
            return attend(**named)
        if func in _GROUPED:
            return args[0].new_empty((args[0].shape[0], args[1].shape[-1]))
        if func in _ANSWERS and args[0].is_meta:
            return _ANSWERS[func]
        return func(*args, **(kwargs or {}))


def _is_fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> bool:
    """Whether real devices have a kernel for it; a broadcast head (Falcon) is left to the textbook.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention
    """
    same_heads = query.shape[-3] == key.shape[-3] or bool(options.get("enable_gqa"))
    return same_heads and query.shape[-1] == value.shape[-1]


def _attend_fused(
    query: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **_: Any
) -> torch.Tensor:
    """The result of a fused kernel, made beside the mask as numbers, which kernels add."""
    bias = None if attn_mask is None else query.new_empty(attn_mask.shape)
    result = query.new_empty((*query.shape[:-1], value.shape[-1]))
    del bias
    return result


def _attend_by_the_book(query: torch.Tensor, key: torch.Tensor, **named: Any) -> torch.Tensor:
    """The scores of all heads, counted as torch makes them, beside the softmax's own mask."""
    hidden = query.new_empty((*query.shape[:-1], key.shape[-2]), dtype=torch.bool)
    result = functional.scaled_dot_product_attention(query, key, **named)
    del hidden
    return result


def _by_formula(model: PreTrainedModel, blocks: int, max_model_len: int, chunk: int) -> Probe:
    """The textbook sizes: keys and values of all heads, and an unfused block's activations."""
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
    activations += _number(config, "vocab_size") * 4 * (chunk + _SAMPLING_COPIES)
    per_token = 2 * kv_heads * head_dim * itemsize
    if not per_token:
        raise ConfigurationError(
            f"The KV cache of a {model.config.model_type!r} model can neither be measured nor "
            "computed from its config."
        )
    return Probe((per_token,) * blocks, (0,) * blocks, activations, measured=False)


def _number(config: Any, name: str) -> int:
    """The number of this name, the largest where layers differ; 0 where there is none."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    values = [getattr(layer, name, None) or 0 for layer in layers]
    return max(max(value) if isinstance(value, (list, tuple)) else int(value) for value in values)
