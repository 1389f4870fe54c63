"""Tensors of a forward pass that have values only if a model needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from predictor.private.torch import WithoutSubclasses


def getter(name: str) -> Callable[..., Any]:
    """Return the function that a read of an attribute of a tensor calls."""
    function: Callable[..., Any] = getattr(torch.Tensor, name).__get__
    return function


_NEUTRAL = frozenset(
    map(getter, ("device", "dtype", "layout", "ndim", "requires_grad", "shape"))
) | {torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.size}
"""What a model may learn of the rows without their values."""


def without_values(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Return a tensor of a shape, and of the dtype and on the device of another."""
    return like.new_empty([1] * len(shape)).expand(*shape)


class LazyRows(torch.Tensor):
    """Keys or values of rows, without memory of its own.

    Attributes:
        functions: Functions of PyTorch, and what is called in their place. That returns None for
            arguments that it does not know.
    """

    functions: ClassVar[Mapping[Callable[..., Any], Callable[..., Any]]] = {}

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute a function of PyTorch, with values only if it needs them."""
        named = kwargs or {}
        with WithoutSubclasses():
            if func in _NEUTRAL:
                return func(*args, **named)
            replacement = cls.functions.get(func)
            result = None if replacement is None else replacement(*args, **named)
            return func(*_gathered(args), **_gathered(named)) if result is None else result

    def gathered(self) -> torch.Tensor:
        """Return the same with memory of its own."""
        raise NotImplementedError


def _gathered(value: Any) -> Any:
    """Return arguments with gathered rows."""
    if isinstance(value, LazyRows):
        return value.gathered()
    if isinstance(value, list | tuple):
        return type(value)(map(_gathered, value))
    if isinstance(value, dict):
        return {name: _gathered(item) for name, item in value.items()}
    return value
