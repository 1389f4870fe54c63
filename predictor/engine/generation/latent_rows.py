"""Attention to latents: the compressed keys and values of multi-head latent attention.

Models such as DeepSeek keep one latent of a token for all heads, and expand the latents of all
cached tokens in each layer of each forward pass. For a few new tokens the same is computed without
that (DeepSeek-V2, 2405.04434, section 2.1.2): the weights of the expansion are applied to the
queries, and to the outputs. Each row then multiplies its own latents in the pool (`row_products`).

The latents are expanded, as without this module, for many new tokens, if a layer's weights are not
at hand as one matrix, and for any use of keys and values but those above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from predictor.engine.generation.cached_rows import CachedRows
from predictor.engine.generation.lazy_rows import LazyRows, getter, without_values
from predictor.engine.generation.row_products import multiply_keys, multiply_values
from predictor.linear.install import is_linear
from predictor.private.torch import own_attributes, own_parameters

_MOST_NEW = 64
"""New tokens of a row that attend to latents. They have three to four times as many dimensions as
a head, so for more than some 170 new tokens it takes longer than to expand them; and the products
with all columns take memory."""

Expansion = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Makes keys and values, each of shape (rows, heads, columns, size), of two latents, each of shape
(rows, 1, columns, size): that without positions, and the keys with positions."""


@dataclass(slots=True)
class _Latents:
    """The latents of a layer, and what expands them.

    Attributes:
        plain: Those without positions.
        rotated: The keys with positions.
        of_keys: The weights of the keys, of shape (heads, size, latent).
        of_values: The weights of the values, likewise.
        expand: The model's own expansion.
    """

    plain: CachedRows
    rotated: CachedRows
    of_keys: torch.Tensor
    of_values: torch.Tensor
    expand: Expansion
    _expanded: tuple[torch.Tensor, torch.Tensor] | None = None

    def expanded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values with memory of their own."""
        if self._expanded is None:
            self._expanded = self.expand(self.plain.gathered(), self.rotated.gathered())
        return self._expanded

    def multiply_keys(self, query: torch.Tensor) -> torch.Tensor:
        """Return the products with keys, of shape (rows, heads, queries, columns)."""
        plain, rotated = torch.split(query, [self.of_keys.shape[1], self.rotated.shape[-1]], dim=-1)
        scores = multiply_keys(_by_head(plain, self.of_keys), self.plain.source)
        return scores.add_(multiply_keys(rotated, self.rotated.source))

    def multiply_values(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the products with values, of shape (rows, heads, queries, size)."""
        return _by_head(multiply_values(weights, self.plain.source), self.of_values.mT)


class LatentRows(LazyRows):
    """Keys or values of shape (rows, heads, columns, size), or transposed keys.

    Attributes:
        latents: What they are made of.
        are_keys: Whether they are keys.
        is_transposed: Whether the last dimension is that of the columns.
    """

    latents: _Latents
    are_keys: bool
    is_transposed: bool

    def gathered(self) -> torch.Tensor:
        """Return the same with memory of its own."""
        rows = self.latents.expanded()[0 if self.are_keys else 1]
        return rows.mT if self.is_transposed else rows


def attend_to_latents(model: nn.Module) -> None:
    """Have the layers of a model attend to latents that are in a pool of pages.

    Args:
        model: The model; one without latents stays as it is.
    """
    names = ("expand_kv", "kv_b_proj", "qk_nope_head_dim", "v_head_dim")
    for module in model.modules():
        if all(hasattr(module, name) for name in names):
            layer: Any = module
            layer.expand_kv = partial(_expand, layer, layer.expand_kv)


def _expand(
    layer: Any, expand: Expansion, plain: torch.Tensor, rotated: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values, which are expanded when they are needed."""
    weight = _matrix(layer.kv_b_proj)
    if not (isinstance(plain, CachedRows) and isinstance(rotated, CachedRows)) or weight is None:
        return expand(plain, rotated)
    sizes = [layer.qk_nope_head_dim, layer.v_head_dim]
    is_known = plain.ndim == 4 and plain.shape[1] == 1 and plain.dtype == weight.dtype
    if not is_known or plain.source.layout.new > _MOST_NEW:
        return expand(plain, rotated)
    of_keys, of_values = torch.split(weight.view(-1, sum(sizes), weight.shape[1]), sizes, dim=1)
    latents = _Latents(plain, rotated, of_keys, of_values, expand)
    rows, _, columns, size = rotated.shape
    key_shape = (rows, len(of_keys), columns, sizes[0] + size)
    return (
        _lazy(key_shape, weight, latents, are_keys=True),
        _lazy((*key_shape[:3], sizes[1]), weight, latents, are_keys=False),
    )


def _matrix(layer: nn.Module) -> torch.Tensor | None:
    """Return the weights of a linear layer, if a call of it does nothing but multiply with them."""
    own, parameters = own_attributes(layer), own_parameters(layer)
    is_plain = is_linear(layer) and "forward" not in own and not own["_forward_hooks"]
    weight = parameters.get("weight") if is_plain and parameters.get("bias") is None else None
    return None if weight is None or weight.is_meta else weight


def _lazy(
    shape: tuple[int, ...],
    like: torch.Tensor,
    latents: _Latents,
    *,
    are_keys: bool,
    is_transposed: bool = False,
) -> LatentRows:
    rows = without_values(shape, like).as_subclass(LatentRows)
    rows.latents, rows.are_keys, rows.is_transposed = latents, are_keys, is_transposed
    return rows


def _by_head(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Multiply the states of each head with its own matrix.

    Args:
        states: Of shape (rows, heads, queries, in).
        weights: Of shape (heads, in, out).

    Returns:
        Of shape (rows, heads, queries, out).
    """
    rows, heads, queries, size = states.shape
    products = torch.bmm(states.transpose(0, 1).reshape(heads, rows * queries, size), weights)
    return products.view(heads, rows, queries, -1).transpose(0, 1)


# The functions that expand nothing


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001
) -> torch.Tensor | None:
    """Compute `scaled_dot_product_attention`."""
    if not (isinstance(key, LatentRows) and isinstance(value, LatentRows)) or dropout_p:
        return None
    if key.latents is not value.latents or is_causal or query.shape[1] != key.shape[1]:
        return None
    scores = key.latents.multiply_keys(query).float()
    scores *= query.shape[-1] ** -0.5 if scale is None else scale
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores.masked_fill_(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores += attn_mask
    return key.latents.multiply_values(scores.softmax(-1).to(query.dtype))


def _transpose(rows: Any, first: int, second: int) -> LatentRows | None:
    """Exchange the columns and the size."""
    if not isinstance(rows, LatentRows) or {first % 4, second % 4} != {2, 3}:
        return None
    shape = (*rows.shape[:2], rows.shape[3], rows.shape[2])
    transposed = not rows.is_transposed
    like = rows.latents.of_keys
    return _lazy(shape, like, rows.latents, are_keys=rows.are_keys, is_transposed=transposed)


def _multiply(factor: Any, rows: Any) -> torch.Tensor | None:
    """Multiply queries with transposed keys, or weights with values."""
    if not isinstance(rows, LatentRows) or isinstance(factor, LazyRows):
        return None
    is_known = rows.are_keys == rows.is_transposed and factor.dtype == rows.dtype
    if not is_known or factor.shape[:-2] != rows.shape[:-2]:
        return None
    multiply = rows.latents.multiply_keys if rows.are_keys else rows.latents.multiply_values
    return multiply(factor)


LatentRows.functions = {
    scaled_dot_product_attention: _attend,
    torch.Tensor.transpose: _transpose,
    getter("mT"): partial(_transpose, first=-2, second=-1),
    torch.matmul: _multiply,
    torch.Tensor.matmul: _multiply,
    torch.Tensor.__matmul__: _multiply,
    torch.Tensor.contiguous: lambda rows: rows,
}
