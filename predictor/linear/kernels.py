"""The ways to compute a linear layer, y = x W^T + b, and which of them a layer can be computed in.

All of them agree in float32 to 1e-5. In half precision each product is summed in float32 and
rounded once to the serving dtype, so they differ by its last digit: by 2^-8 of a value in
bfloat16, 2^-11 in float16, beside what the order of a float32 sum changes. `native blocks` rounds
packed weights to the serving dtype before the product, as all others do with activations alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from predictor.linear.formats.format import ROWS, WeightFormat
from predictor.linear.weight import PLAIN, LinearWeight

Compute = Callable[[torch.Tensor, LinearWeight, torch.Tensor | None], torch.Tensor]
"""Computes a layer: inputs of shape (rows, in), weights, bias of shape (out,); returns outputs of
shape (rows, out) in the dtype of the inputs."""

_UNPACKED_BYTES = 2**25
"""Bytes of weights in the serving dtype that an accelerator unpacks at one time. Its matrix units
need thousands of outputs to be busy; a processor needs weights that stay in its cache."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to compute a linear layer.

    Attributes:
        title: Its name for users.
        compute: Computes a layer.
    """

    title: str
    compute: Compute


def kernels_for(
    weight_format: WeightFormat | None, dtype: torch.dtype, device: str
) -> tuple[Kernel, ...]:
    """Return the kernels of a kind of layers, the one that needs no timing to be good first.

    Args:
        weight_format: How the weights are packed; None for plain ones.
        dtype: The dtype of the inputs.
        device: The type of the device that computes.
    """
    if device != "cpu":
        return (NATIVE,) if weight_format is None else (UNPACKED,)
    if weight_format is None:
        return (NATIVE, FLOAT32_BLOCKS) if dtype.itemsize == 2 else (NATIVE,)
    return (FLOAT32_BLOCKS, NATIVE_BLOCKS) if dtype.itemsize == 2 else (FLOAT32_BLOCKS,)


def allocate_most(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """Allocate on the meta device as much as the hungriest kernel that may be chosen.

    Where there is an accelerator, layers may be computed there or, by then, on the processor.
    """
    result = x.new_empty(x.shape[0], weight.out_features)
    if weight.format is not None and torch.cuda.is_available():
        _block(x, weight, bias, 0, _rows_at_once(x, weight))
    elif x.dtype.itemsize == 2 or weight.format is not None:
        _block(x.to(torch.float32), weight, bias, 0, ROWS)
    return result


def _native(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    return functional.linear(x, weight.tensors[PLAIN], bias)


def _float32_blocks(
    x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    return _in_blocks(x, weight, bias, torch.float32, ROWS)


def _native_blocks(
    x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    return _in_blocks(x, weight, bias, x.dtype, ROWS)


def _unpacked(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    return _in_blocks(x, weight, bias, x.dtype, _rows_at_once(x, weight))


def _rows_at_once(x: torch.Tensor, weight: LinearWeight) -> int:
    return max(1, _UNPACKED_BYTES // (ROWS * weight.in_features * x.dtype.itemsize)) * ROWS


def _in_blocks(
    x: torch.Tensor,
    weight: LinearWeight,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    height: int,
) -> torch.Tensor:
    """Compute so many outputs at a time, in a dtype."""
    result = x.new_empty(x.shape[0], weight.out_features)
    inputs = x.to(dtype)
    for begin in range(0, weight.out_features, height):
        result[:, begin : begin + height] = _block(inputs, weight, bias, begin, height)
    return result


def _block(
    inputs: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None, begin: int, height: int
) -> torch.Tensor:
    """Return outputs from one on, in the dtype of the inputs."""
    end = min(begin + height, weight.out_features)
    rows = weight.rows(begin, end, inputs.dtype)
    added = None if bias is None else bias[begin:end].to(inputs.dtype)
    return functional.linear(inputs, rows, added)


NATIVE = Kernel("native", _native)
"""torch's own, on the whole matrix."""

FLOAT32_BLOCKS = Kernel("float32 blocks", _float32_blocks)
"""`ROWS` outputs at a time are converted or unpacked to float32, which stays in cache. A processor
without units for half precision computes in float32 anyway, and torch's kernels for half precision
convert the weights anew for every few rows."""

NATIVE_BLOCKS = Kernel("native blocks", _native_blocks)
"""The same in the serving dtype: for processors with units for it."""

UNPACKED = Kernel("unpacked", _unpacked)
"""Unpacked to the serving dtype, on an accelerator."""
