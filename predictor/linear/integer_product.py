"""The product of inputs in half precision and a matrix of 8-bit integers, computed in integers.

Processors multiply bytes at least twice as fast as anything else, and the matrix need not be
converted. The inputs are written with two digits of a byte each: of every row, as multiples of
1/16,319 of its largest value, ``128 * high + low``. The products with both are exact.

So an input is rounded by at most 2^-15 of the largest one of its row. In the mean that changes an
output by less than rounding it to bfloat16 does, unless one input is hundreds of times as large as
the others and its own weights are small.
"""

from __future__ import annotations

import torch

from predictor.private.torch import int_mm

_DIGIT = 128
"""The value of one in the high digit."""

_LARGEST = 127 * _DIGIT + 63
"""The largest number that two digits can write."""


def integer_product(
    x: torch.Tensor, matrix: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``x (scale * matrix)^T + bias`` in float32, of shape (rows, out).

    Args:
        x: The inputs, of shape (rows, in).
        matrix: Integers, of shape (out, in), in int8.
        scale: What they are multiplied with, of shape (out,), in float32.
        bias: Of shape (out,), or None.
    """
    exact = x.to(torch.float32)
    step = exact.abs().amax(1, keepdim=True) / _LARGEST
    products = int_mm(_digits(exact, step), matrix.t()).to(torch.float32)
    high, low = products.chunk(2)
    result = high.mul_(_DIGIT).add_(low).mul_(step).mul_(scale)
    return result if bias is None else result.add_(bias)


def _digits(exact: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return the high digits of all rows, then the low ones, of shape (2 rows, in), in int8."""
    numbers = exact.div_(torch.where(step == 0, 1, step)).round_().to(torch.int16)
    high = (numbers + _DIGIT // 2) >> 7
    return torch.cat((high.to(torch.int8), (numbers - (high << 7)).to(torch.int8)))


def allocate_integer_product(x: torch.Tensor, out_features: int) -> None:
    """Allocate on the meta device as much as `integer_product` does at one time."""
    exact = x.new_empty(x.shape, dtype=torch.float32)
    digits = x.new_empty(2 * len(x), x.shape[1], dtype=torch.int8)
    integers = x.new_empty(2 * len(x), out_features, dtype=torch.int32)
    products = x.new_empty(2 * len(x), out_features, dtype=torch.float32)
    del exact, digits, integers, products
