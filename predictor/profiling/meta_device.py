"""Running a model on the meta device as if it were a real one, and counting what would be alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Set
from typing import Any, TypeVar

import torch
import torch.nn.functional as functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""Models fail on meta in every way there is: data-dependent shapes, `.item()`, missing kernels."""

_T = TypeVar("_T")

_GROUPED = (functional.grouped_mm, torch._grouped_mm)
"""The matrix products of experts, whose kernels on meta know bfloat16 alone."""

_ANSWERS = {torch.Tensor.__bool__: True, torch.Tensor.item: True, torch.Tensor.__contains__: False}
"""What a sequence without padding answers to "does the mask show all?" and "is padding in it?"."""

_PADDED = {torch.Tensor.__bool__: False, torch.Tensor.item: False, torch.Tensor.__contains__: True}
"""What sequences with padding answer."""

_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""The positional parameters of `scaled_dot_product_attention`."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages alive, by watching every operation's results."""

    def __init__(self, besides: Set[torch.UntypedStorage] = frozenset()) -> None:
        """Begins with nothing alive.

        Args:
            besides: What is not counted, since it is there before and after: the weights.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._besides = besides
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    def count(self, tensors: Iterator[torch.Tensor]) -> None:
        """Adds the storages of these tensors until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._seen and storage not in self._besides:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, count: int) -> None:
        self.now -= count


def peak_beside(model: PreTrainedModel, run: Callable[[], _T]) -> tuple[_T, int]:
    """Runs a model; returns what that gives and the bytes alive at its worst besides the model."""
    weights = {weight.untyped_storage() for weight in model.parameters()}
    with LiveBytes(besides=weights) as live:
        live.count(model.buffers())
        buffers = live.now
        result = run()
    return result, live.peak - buffers


def filled(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """Returns a layer of a cache that holds these; updating an empty one would copy them."""
    layer = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


class AsOnDevices(TorchFunctionMode):
    """What meta tensors would otherwise decide differently from real ones.

    Attention runs as on real devices, where fused kernels hold no matrix of scores (on meta, torch
    would choose the textbook form and count the scores of all heads). And a question to a mask,
    whose values meta has not, is answered as for sequences with or without padding.
    """

    def __init__(self, *, padded: bool = False) -> None:
        """Answers for sequences without padding, or for `padded` ones."""
        super().__init__()
        self._answers = _PADDED if padded else _ANSWERS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            named = dict(zip(_ATTENTION, args, strict=False)) | (kwargs or {})
            attend = _attend_fused if _is_fused(**named) else _attend_by_the_book
            return attend(**named)
        if func in _GROUPED:
            return args[0].new_empty((args[0].shape[0], args[1].shape[-1]))
        if func in self._answers and args[0].is_meta:
            return self._answers[func]
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
