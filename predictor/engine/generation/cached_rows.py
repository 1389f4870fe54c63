"""The cached keys and values of a forward pass, which are copied only if the model needs that.

To a model they are tensors of shape (rows, heads, columns, size). If it calls PyTorch's attention
with them, which nearly all architectures do, each row attends to its own pages in the pool
(`row_attention`). Any other use gathers the rows, padding included. Both have the same results.

Models repeat the heads of keys and values if there are more heads of queries. That copies nothing
either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch.nn.functional import scaled_dot_product_attention

from predictor.engine.generation.layout import Layout
from predictor.engine.generation.row_attention import Attention
from predictor.private.torch import WithoutSubclasses

_NEUTRAL = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in ("device", "dtype", "layout", "ndim", "requires_grad", "shape")
) | {torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.size}
"""What a model may learn of the rows without their values."""


@dataclass(slots=True)
class Source:
    """The keys or the values of one layer, and the rows of a forward pass over it.

    Attributes:
        pool: Those of all pages, of shape (heads, pages, size).
        layout: The rows.
        window: The window of the layer, see `Layout.past_within`.
    """

    pool: torch.Tensor
    layout: Layout
    window: int
    _rows: torch.Tensor | None = None

    def gathered(self) -> torch.Tensor:
        """Return whole rows, of shape (rows, heads, columns, size)."""
        if self._rows is None:
            gather = self.layout.gather(self.pool.device, self.window)
            rows = self.pool.index_select(1, gather.flatten())
            heads, _, size = rows.shape
            self._rows = rows.view(heads, *gather.shape, size).transpose(0, 1)
        return self._rows


class CachedRows(torch.Tensor):
    """Keys or values of shape (rows, heads, columns, size), without memory of its own.

    Attributes:
        source: Where they are.
        repeats: How often each head comes, one copy after the other.
    """

    source: Source
    repeats: int

    @classmethod
    def of(cls, source: Source, rows: int, columns: int) -> CachedRows:
        """Return the rows of a forward pass.

        Args:
            source: Where they are.
            rows: How many rows there are.
            columns: Columns of each.
        """
        heads, _, size = source.pool.shape
        return _wrap(source.pool.new_empty(1, 1, 1, 1).expand(rows, heads, columns, size), source)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute a function of PyTorch, without a copy if it is one of those above."""
        named = kwargs or {}
        with WithoutSubclasses():
            if func in _NEUTRAL:
                return func(*args, **named)
            result = _COPYING_NOTHING[func](*args, **named) if func in _COPYING_NOTHING else None
            return func(*_gathered(args), **_gathered(named)) if result is None else result

    def gathered(self) -> torch.Tensor:
        """Return the same with memory of its own."""
        rows = self.source.gathered()
        if self.ndim == 4:
            return rows if self.repeats == 1 else rows.repeat_interleave(self.repeats, 1)
        return rows[:, :, None].expand(-1, -1, self.shape[2], -1, -1)


def _wrap(shape: torch.Tensor, source: Source, repeats: int = 1) -> CachedRows:
    rows = shape.as_subclass(CachedRows)
    rows.source, rows.repeats = source, repeats
    return rows


def _gathered(value: Any) -> Any:
    """Return arguments with gathered rows."""
    if isinstance(value, CachedRows):
        return value.gathered()
    if isinstance(value, list | tuple):
        return type(value)(map(_gathered, value))
    if isinstance(value, dict):
        return {name: _gathered(item) for name, item in value.items()}
    return value


# The functions that copy nothing; each returns None for arguments that it does not know


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """Compute `scaled_dot_product_attention` row by row."""
    if not (_are_whole(key) and _are_whole(value)) or isinstance(query, CachedRows) or dropout_p:
        return None
    keys, values = key.source, value.source
    is_grouped = enable_gqa or query.shape[1] == key.shape[1]
    if key.repeats != value.repeats or keys.layout is not values.layout or not is_grouped:
        return None
    return Attention(
        *(keys.layout, keys.window, keys.pool, values.pool),
        *(query, attn_mask, is_causal, scale),
    ).by_row()


def _index(rows: Any, index: Any) -> CachedRows | None:
    """Add a dimension after that of the heads."""
    is_new_axis = isinstance(index, tuple) and index[2:3] == (None,)
    if not is_new_axis or not _are_whole(rows) or rows.repeats > 1:
        return None
    if any(part != slice(None) for part in (*index[:2], *index[3:])):
        return None
    return _wrap(rows.as_subclass(torch.Tensor)[index], rows.source)


def _expand(rows: Any, *shape: Any) -> CachedRows | None:
    """Repeat along the dimension that was added."""
    if not isinstance(rows, CachedRows) or rows.ndim != 5:
        return None
    expanded = rows.as_subclass(torch.Tensor).expand(*shape)
    return _wrap(expanded, rows.source) if expanded.ndim == 5 else None


def _reshape(rows: Any, *shape: Any) -> CachedRows | None:
    """Join the dimension that was added with that of the heads."""
    if not isinstance(rows, CachedRows) or rows.ndim != 5:
        return None
    joined = rows.as_subclass(torch.Tensor).reshape(*shape)
    count, heads, repeats, columns, size = rows.shape
    if joined.shape != (count, heads * repeats, columns, size):
        return None
    return _wrap(joined, rows.source, repeats)


def _keep(rows: Any) -> CachedRows | None:
    """Return contiguous rows, which they are if they are gathered."""
    return rows if isinstance(rows, CachedRows) else None


def _are_whole(rows: Any) -> TypeGuard[CachedRows]:
    return isinstance(rows, CachedRows) and rows.ndim == 4


_COPYING_NOTHING: dict[Callable[..., Any], Callable[..., Any]] = {
    scaled_dot_product_attention: _attend,
    torch.Tensor.__getitem__: _index,
    torch.Tensor.expand: _expand,
    torch.Tensor.reshape: _reshape,
    torch.Tensor.contiguous: _keep,
}
