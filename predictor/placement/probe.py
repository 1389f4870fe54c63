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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

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

    The cache is measured at half and at full length. Caches grow linearly or, with a sliding
    window, less than that, so the line through both points is never below the truth for shorter
    sequences and is exact at `max_model_len`.

    Args:
        model: The model, on the meta device.
        blocks: How many blocks it has.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of the pass whose activations are measured.
    """
    half = max(1, max_model_len // 2)
    try:
        short = _cache_bytes(_forward(model, half), blocks)
        long = _cache_bytes(_forward(model, max_model_len), blocks)
        activations = _activations(model, max_model_len, chunk)
    # Models fail on meta in every way there is: data-dependent shapes, `.item()`, missing kernels.
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError):
        return _by_formula(model, blocks, max_model_len, chunk)
    slopes = [(b - a) // max(1, max_model_len - half) for a, b in zip(short, long, strict=True)]
    fixed = [b - slope * max_model_len for b, slope in zip(long, slopes, strict=True)]
    return Probe(tuple(slopes), tuple(fixed), activations, measured=True)


def _forward(model: PreTrainedModel, tokens: int, past: Any = None) -> Any:
    """Runs tokens of one sequence; without an attention mask, whose values meta has not."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    extra: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extra["logits_to_keep"] = 1
    with torch.no_grad(), _fused_attention():
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


class _Fused(TorchFunctionMode):
    """Attention as real devices run it: fused kernels hold no matrix of scores.

    On meta, torch would choose the textbook form and count the scores of all heads.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            query, value = named["query"], named["value"]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


@contextmanager
def _fused_attention() -> Iterator[None]:
    with _Fused():
        yield


def _by_formula(model: PreTrainedModel, blocks: int, max_model_len: int, chunk: int) -> Probe:
    """The textbook sizes: keys and values of all heads, and an unfused block's activations."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1) or 1
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    hidden = getattr(config, "hidden_size", 0) or 0
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    itemsize = model.dtype.itemsize
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    activations = chunk * (16 * hidden + 4 * inner) * itemsize
    activations += heads * chunk * max_model_len * (itemsize + 4)
    activations += config.vocab_size * 4 * (chunk + _SAMPLING_COPIES)
    per_token = 2 * kv_heads * head_dim * itemsize
    return Probe((per_token,) * blocks, (0,) * blocks, activations, measured=False)
