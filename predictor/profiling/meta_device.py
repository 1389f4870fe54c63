"""Run a model on the meta device like on a real one, and count the bytes that it allocates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as functional
from torch.overrides import TorchFunctionMode
from transformers import DynamicLayer, PreTrainedModel

from predictor.live_bytes import LiveBytes
from predictor.private.torch import GROUPED_PRODUCTS, all_nonzero_on_meta

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""The errors with which models fail on meta: data-dependent shapes, `.item()`, missing kernels."""

_T = TypeVar("_T")

_UNPADDED = {
    torch.Tensor.__bool__: True,
    torch.Tensor.item: True,
    torch.Tensor.__contains__: False,
}
"""The values of "does the mask show all?" and "is there padding?" for sequences without padding."""

_PADDED = {torch.Tensor.__bool__: False, torch.Tensor.item: False, torch.Tensor.__contains__: True}
"""The same values for sequences with padding."""

_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""The positional parameters of `scaled_dot_product_attention`."""


def measure_peak(model: PreTrainedModel, run: Callable[[], _T]) -> tuple[_T, int]:
    """Run a model; return the result and the most bytes alive without weights and buffers."""
    weights = {weight.untyped_storage() for weight in model.parameters()}
    with LiveBytes(excluded=weights) as live:
        live.count(model.buffers())
        buffers = live.now
        result = run()
    return result, live.peak - buffers


def cache_layer(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """Return a cache layer that holds these tensors without a copy, as an update would make."""
    layer = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


class DeviceBehavior(TorchFunctionMode):
    """Have meta tensors take the code paths that tensors on a real device take.

    Attention runs as on real devices, whose fused kernels hold no matrix of scores. On meta, torch
    would choose the textbook form, and the scores of all heads would be counted. A condition on the
    values of a mask, which meta does not have, is true or false as for sequences with or without
    padding. A search for the values of a tensor (`nonzero`) returns all positions, and a position
    that is such a value is the first one, also in a name that is made of it (``expert_0``).
    """

    def __init__(self, *, padded: bool = False) -> None:
        """Behave as for sequences without padding, or for `padded` ones."""
        super().__init__()
        self._values = _PADDED if padded else _UNPADDED
        self._nonzero = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Begin to behave so."""
        self._nonzero.enter_context(all_nonzero_on_meta())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Behave as torch does again."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._nonzero.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            named = dict(zip(_ATTENTION, args, strict=False)) | (kwargs or {})
            attend = _attend_fused if _is_fused(**named) else _attend_unfused
            return attend(**named)
        if func in GROUPED_PRODUCTS:
            return args[0].new_empty((args[0].shape[0], args[1].shape[-1]))
        if func in self._values and args[0].is_meta:
            return self._values[func]
        if func is torch.Tensor.__getitem__:
            return args[0][_first_for_unknown(args[1])]
        if func is torch.Tensor.__format__:
            return format(_first_for_unknown(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def _first_for_unknown(index: Any) -> Any:
    """Return an index in which numbers on meta, which have no value, are 0."""
    if isinstance(index, tuple):
        return tuple(map(_first_for_unknown, index))
    is_number = isinstance(index, torch.Tensor) and index.is_meta and index.dim() == 0
    return 0 if is_number and not index.is_floating_point() else index


def _is_fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> bool:
    """Return whether real devices have a fused kernel; a broadcast head (Falcon) has none.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention
    """
    same_heads = query.shape[-3] == key.shape[-3] or bool(options.get("enable_gqa"))
    return same_heads and query.shape[-1] == value.shape[-1]


def _attend_fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Allocate a fused kernel's result, beside the mask as numbers that the kernel adds."""
    if attn_mask is not None and attn_mask.shape[-1] not in (1, key.shape[-2]):
        raise ValueError("a mask of other columns than those of the keys")
    bias = None if attn_mask is None else query.new_empty(attn_mask.shape)
    result = query.new_empty((*query.shape[:-1], value.shape[-1]))
    del bias
    return result


def _attend_unfused(query: torch.Tensor, key: torch.Tensor, **named: Any) -> torch.Tensor:
    """Compute the scores of all heads as torch does, beside the mask of the softmax."""
    hidden = query.new_empty((*query.shape[:-1], key.shape[-2]), dtype=torch.bool)
    result = functional.scaled_dot_product_attention(query, key, **named)
    del hidden
    return result
