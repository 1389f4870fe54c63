"""The cached keys and values of a forward pass, which are copied only if the model needs that.

To a model they are tensors of shape (rows, heads, columns, size). If it calls PyTorch's attention
with them, which nearly all architectures do, each row attends to its own pages in the pool
(`row_attention`). If it computes attention by products of matrices, each row multiplies its own
pages (`row_products`). Any other use gathers the rows, padding included. All have the same results.

Models repeat the heads of keys and values if there are more heads of queries, join the dimension of
the heads with that of the rows, and transpose keys. That copies nothing either.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeGuard

import torch
from torch.nn.functional import scaled_dot_product_attention

from predictor.engine.generation.lazy_rows import LazyRows, getter, without_values
from predictor.engine.generation.row_attention import Attention
from predictor.engine.generation.row_products import multiply_keys, multiply_values
from predictor.engine.generation.row_source import Source


class CachedRows(LazyRows):
    """Keys or values of shape (rows, heads, columns, size), without memory of its own.

    The shape may have a further dimension after that of the heads, or those of rows and heads as
    one.

    Attributes:
        source: The pages that they are in.
        repeats: How often each head comes, one copy after the other.
        is_transposed: Whether the last dimension is that of the columns.
    """

    source: Source
    repeats: int
    is_transposed: bool

    @classmethod
    def of(cls, source: Source) -> CachedRows:
        """Return the rows of a forward pass."""
        return _wrap(without_values(source.shape, source.pool), source)

    def gathered(self) -> torch.Tensor:
        """Return the same with memory of its own."""
        rows = self.source.gathered()
        if self.ndim == 5:
            return rows[:, :, None].expand(-1, -1, self.shape[2], -1, -1)
        rows = rows if self.repeats == 1 else rows.repeat_interleave(self.repeats, 1)
        rows = rows if self.ndim == 4 else rows.flatten(0, 1)
        return rows.mT if self.is_transposed else rows


def _wrap(
    shape: torch.Tensor, source: Source, repeats: int = 1, *, is_transposed: bool = False
) -> CachedRows:
    rows = shape.as_subclass(CachedRows)
    rows.source, rows.repeats, rows.is_transposed = source, repeats, is_transposed
    return rows


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
    is_grouped = enable_gqa or key.shape[1] in (1, query.shape[1])
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
    """Join the dimension of the heads with the one that was added, or with that of the rows."""
    if not isinstance(rows, CachedRows) or rows.is_transposed:
        return None
    joined = rows.as_subclass(torch.Tensor).reshape(*shape)
    if rows.ndim == 5:
        count, heads, repeats, columns, size = rows.shape
        is_known = joined.shape == (count, heads * repeats, columns, size)
        return _wrap(joined, rows.source, repeats) if is_known else None
    if rows.ndim == 4 and joined.shape == (rows.shape[0] * rows.shape[1], *rows.shape[2:]):
        return _wrap(joined, rows.source, rows.repeats)
    return None


def _transpose(rows: Any, first: Any, second: Any) -> CachedRows | None:
    """Exchange the columns and the size."""
    if not isinstance(rows, CachedRows) or rows.ndim == 5:
        return None
    if {first % rows.ndim, second % rows.ndim} != {rows.ndim - 2, rows.ndim - 1}:
        return None
    shape, is_transposed = rows.as_subclass(torch.Tensor).mT, not rows.is_transposed
    return _wrap(shape, rows.source, rows.repeats, is_transposed=is_transposed)


def _multiply(factor: Any, rows: Any) -> torch.Tensor | None:
    """Multiply queries with transposed keys, or weights with values, row by row."""
    if not isinstance(rows, CachedRows) or isinstance(factor, CachedRows) or rows.ndim == 5:
        return None
    if factor.dtype != rows.dtype or not _is_broadcast(rows.shape[:-2], factor.shape[:-2]):
        return None
    source = rows.source
    multiply = multiply_keys if rows.is_transposed else multiply_values
    by_head = factor.reshape(source.shape[0], -1, *factor.shape[-2:])
    return multiply(by_head, source).view(*factor.shape[:-1], rows.shape[-1])


def _is_broadcast(shape: torch.Size, to: torch.Size) -> bool:
    """Return whether rows and heads are those of the other factor, or one head for all."""
    return shape == to or (len(shape) == len(to) == 2 and shape[0] == to[0] and shape[1] == 1)


def _add_product(
    bias: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor | None:
    """Compute `baddbmm`."""
    product = _multiply(batch1, batch2)
    return None if product is None else product.mul_(alpha).add_(bias, alpha=beta)


def _keep(rows: Any) -> CachedRows | None:
    """Return contiguous rows, which they are if they are gathered."""
    return rows if isinstance(rows, CachedRows) else None


def _cast(rows: Any, *args: Any, **named: Any) -> CachedRows | None:
    """Keep rows that have the dtype already."""
    is_same = isinstance(rows, CachedRows) and args == (rows.dtype,) and not named
    return rows if is_same else None


def _are_whole(rows: Any) -> TypeGuard[CachedRows]:
    return isinstance(rows, CachedRows) and rows.ndim == 4 and not rows.is_transposed


CachedRows.functions = {
    scaled_dot_product_attention: _attend,
    torch.Tensor.__getitem__: _index,
    torch.Tensor.expand: _expand,
    torch.Tensor.reshape: _reshape,
    torch.Tensor.view: _reshape,
    torch.Tensor.contiguous: _keep,
    torch.Tensor.to: _cast,
    torch.Tensor.transpose: _transpose,
    torch.transpose: _transpose,
    getter("mT"): partial(_transpose, first=-2, second=-1),
    torch.matmul: _multiply,
    torch.Tensor.matmul: _multiply,
    torch.Tensor.__matmul__: _multiply,
    torch.bmm: _multiply,
    torch.Tensor.bmm: _multiply,
    torch.baddbmm: _add_product,
    torch.Tensor.baddbmm: _add_product,
}
