"""Compute a linear layer in blocks: a few of its outputs at a time, so that they stay in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from predictor.linear.formats.format import ROWS, WeightFormat
from predictor.linear.weight import LinearWeight

ROWS_AT_ONCE = 512
"""Rows that a processor computes at one time where it needs further memory for them. It converts
the weights once for so many, which costs little then."""


def compute_in_blocks(
    x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Compute `ROWS` outputs at a time, in a dtype."""
    result = x.new_empty(x.shape[0], weight.out_features)
    for rows, outputs in parts(x, result):
        columns = as_columns(rows, dtype)
        for begin in range(0, weight.out_features, ROWS):
            outputs[:, begin : begin + ROWS] = block(columns, weight, bias, begin)
    return result


def as_columns(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the transpose of some rows in a dtype."""
    return rows.T.to(dtype, memory_format=torch.contiguous_format)


def block(
    columns: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None, begin: int
) -> torch.Tensor:
    """Return outputs from one on, of shape (rows, outputs).

    They are in the dtype of the columns, or in float32 if that saves a rounding.
    """
    end = min(begin + ROWS, weight.out_features)
    added = None if bias is None else bias[begin:end]
    if has_output_scales(weight.format) and columns.dtype != torch.float16:  # they may overflow
        return _block_of_integers(columns, weight, added, begin)
    return transposed_product(weight.rows(begin, end, columns.dtype), columns, added)


def _block_of_integers(
    columns: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None, begin: int
) -> torch.Tensor:
    """Do the same with a product that is scaled afterwards: integers are exact in any dtype."""
    matrix, scale = weight.integers(begin, min(begin + ROWS, weight.out_features))
    product = transposed_product(matrix.to(columns.dtype), columns, None)
    return add_bias(product * scale, bias)


def parts(
    x: torch.Tensor, result: torch.Tensor, height: int = ROWS_AT_ONCE
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return the rows that are computed at one time, and those of the result."""
    return zip(torch.split(x, height), torch.split(result, height), strict=True)


def transposed_product(
    matrix: torch.Tensor, columns: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``(W x^T + b)^T``. With few rows libraries compute it up to twice as fast as x W^T."""
    if bias is None:
        return torch.mm(matrix, columns).T
    return torch.addmm(bias[:, None].to(columns.dtype), matrix, columns).T


def add_bias(product: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Add a bias in place, if there is one."""
    return product if bias is None else product.add_(bias)


def has_output_scales(weight_format: WeightFormat | None) -> bool:
    """Return whether weights are integers with a scale for each output, and nothing else."""
    return bool(getattr(weight_format, "has_output_scales", False))
