"""The product of inputs in half precision and a matrix of 8-bit integers, computed in integers.

Processors multiply bytes at least twice as fast as anything else, and the matrix need not be
converted. The inputs are written with two digits of a byte each: of every row, as multiples of
1/32,639 of its largest value, ``256 * high + low``. The products with both are exact.

So an input is rounded by at most 2^-16 of the largest one of its row. In the mean that changes an
output by less than rounding it to bfloat16 does, unless one input is hundreds of times as large as
the others and its own weights are small.
"""

from __future__ import annotations

import functools

import torch

from predictor.private.torch import int_mm

_DIGIT = 256
"""The value of one in the high digit."""

_HALF_DIGIT = _DIGIT // 2

_LARGEST = 127 * _DIGIT + 127
"""The largest number that two digits can write."""

_TINY = 1e-38
"""A step for rows of zeros."""


def integer_product(
    x: torch.Tensor, matrix: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``x (scale * matrix)^T + bias``, of shape (rows, out), in the dtype of the inputs.

    It is computed as ``(matrix x^T)^T``, which reads the matrix as it is: the other order takes up
    to 1.4 times as long. Matrices are transposed in half precision, which torch does fastest.

    Args:
        x: The inputs, of shape (rows, in).
        matrix: Integers, of shape (out, in), in int8.
        scale: What they are multiplied with, of shape (out,), in float32.
        bias: Of shape (out,), or None.
    """
    digits, step = _digits(x)
    result = _values(int_mm(matrix, digits.t())).mul_(scale[:, None]).mul_(step.t())
    if bias is not None:
        result.add_(bias[:, None])
    return result.to(x.dtype).t()


def _digits(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits of inputs, and the value of one of each row, of shape (rows, 1).

    They are the bytes of an integer of 16 bits, little-endian. What makes the lower byte negative
    is added to the upper one.

    Returns:
        The low digits of all rows, then the high ones, of shape (2 rows, in), in int8; the steps.
    """
    exact = x.to(torch.float32)
    step = exact.abs().amax(1, keepdim=True).div_(_LARGEST).clamp_(min=_TINY)
    numbers = exact.div_(step).round_().to(torch.int16)
    numbers.add_(_HALF_DIGIT).bitwise_xor_(_HALF_DIGIT)
    pairs = numbers.view(torch.int8).view(*numbers.shape, 2)
    return pairs.permute(2, 0, 1).reshape(-1, numbers.shape[1]), step


def _values(products: torch.Tensor) -> torch.Tensor:
    """Return what the products with both digits mean together, of shape (out, rows)."""
    low, high = products.chunk(2, 1)
    return high.mul(float(_DIGIT)).add_(low)


def allocate_integer_product(x: torch.Tensor, out_features: int) -> None:
    """Allocate on the meta device as much as `integer_product` does at one time."""
    scales = x.new_empty(out_features + len(x), dtype=torch.float32)
    exact, magnitudes = (x.new_empty(x.shape, dtype=torch.float32) for _ in range(2))
    del exact, magnitudes
    digits = x.new_empty(2 * len(x), x.shape[1], dtype=torch.int8)
    products = x.new_empty(2 * len(x), out_features, dtype=torch.int32)
    values = x.new_empty(len(x), out_features, dtype=torch.float32)
    del scales, digits, products, values


@functools.cache
def is_exact() -> bool:
    """Return whether this processor's products of bytes are exact.

    Without instructions for them (VNNI), processors add pairs of products in 16 bits, and cut off
    what does not fit.
    """
    most = torch.full((64, 64), 127, dtype=torch.int8)
    return bool((int_mm(most, most) == 64 * 127 * 127).all())
