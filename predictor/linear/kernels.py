"""The ways to compute a linear layer, y = x W^T + b, and which of them a layer can be computed in.

All of them agree in float32 to 1e-5. In half precision each product is summed in float32 and
rounded once to the serving dtype, so they differ by its last digit: by 2^-8 of a value in
bfloat16, 2^-11 in float16, beside what the order of a float32 sum changes. `native blocks` rounds
packed weights to the serving dtype before the product, or their products before they are scaled.
`integers` rounds the inputs, see `integer_product`. Those that add a bias to a rounded product
round twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from predictor.linear.blocks import (
    ROWS_AT_ONCE,
    add_bias,
    as_columns,
    block,
    compute_in_blocks,
    has_output_scales,
    parts,
    transposed_product,
)
from predictor.linear.formats import int4, int8
from predictor.linear.formats.format import ROWS, WeightFormat
from predictor.linear.formats.int4 import Int4, panel_here
from predictor.linear.formats.int8 import Int8
from predictor.linear.integer_product import (
    allocate_integer_product,
    integer_product,
    is_exact,
)
from predictor.linear.weight import PLAIN, LinearWeight

Compute = Callable[[torch.Tensor, LinearWeight, torch.Tensor | None], torch.Tensor]
"""Computes a layer: inputs of shape (rows, in), weights, bias of shape (out,); returns outputs of
shape (rows, out) in the dtype of the inputs."""

_UNPACKED_BYTES = 2**25
"""Bytes of weights in the serving dtype that an accelerator unpacks at one time. Its matrix units
need thousands of outputs to be busy; a processor needs weights that stay in its cache."""


_DIGIT_ROWS = 128
"""Rows that a processor multiplies in integers at one time: its results take six times as much
memory as those of other kernels."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to compute a linear layer.

    Attributes:
        title: Its name for users.
        compute: Computes a layer.
    """

    title: str
    compute: Compute


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What decides how fast a kernel is, beside the rows.

    Attributes:
        format: How the weights are packed; None for plain ones.
        dtype: The dtype of the inputs.
        device: The type of the device that computes.
        out_features: Outputs of a layer.
        in_features: Inputs of a layer.
    """

    format: WeightFormat | None
    dtype: torch.dtype
    device: str
    out_features: int
    in_features: int


def kernels_for(kind: LayerKind) -> tuple[Kernel, ...]:
    """Return the kernels of a kind of layers, the one that needs no timing to be good first."""
    if kind.device != "cpu":
        return (NATIVE,) if kind.format is None else (UNPACKED,)
    is_half = kind.dtype.itemsize == 2
    if kind.format is None:
        return (NATIVE, TRANSPOSED, FLOAT32_BLOCKS) if is_half else (NATIVE,)
    blocks = (FLOAT32_BLOCKS, NATIVE_BLOCKS) if is_half else (FLOAT32_BLOCKS,)
    return (*blocks, *_integer_kernels(kind), *_packed_kernels(kind))


def _integer_kernels(kind: LayerKind) -> tuple[Kernel, ...]:
    """Return the kernels that compute in integers, for which there are instructions."""
    is_possible = kind.dtype.itemsize == 2 and has_output_scales(kind.format)
    has_vectors = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return (INTEGERS,) if is_possible and has_vectors and is_exact() else ()


def _packed_kernels(kind: LayerKind) -> tuple[Kernel, ...]:
    """Return the kernels that compute with the weights as they are.

    torch's for int8 crashes in half precision on other numbers of inputs than multiples of 16. That
    for int4 takes many times as long in float32. Both want scales in the dtype of the inputs, and
    float16 has not the range of ours.
    """
    if isinstance(kind.format, Int8) and kind.dtype in (torch.bfloat16, torch.float32):
        return (PACKED_INT8,) if kind.in_features % 16 == 0 else ()
    if isinstance(kind.format, Int4) and kind.dtype == torch.bfloat16:
        return (PACKED_INT4, PACKED_INT4_BY_4) if kind.format.panel == panel_here() else ()
    return ()


def allocate_most(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """Allocate on the meta device as much as the hungriest kernel that may be chosen.

    Where there is an accelerator, layers may be computed there or, by then, on the processor.
    """
    result = x.new_empty(x.shape[0], weight.out_features)
    if torch.cuda.is_available():
        if weight.format is not None:
            _unpacked_rows(x, weight, bias, 0)
    elif x.dtype.itemsize == 2 or weight.format is not None:
        rows = x[:ROWS_AT_ONCE]
        rows.new_empty(weight.out_features, len(rows))  # the transposed product
        for dtype in {torch.float32, x.dtype}:
            block(as_columns(rows, dtype), weight, bias, 0)
        if has_output_scales(weight.format):
            allocate_integer_product(x[:_DIGIT_ROWS], weight.out_features)
    return result


def _native(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    return functional.linear(x, weight.tensors[PLAIN], bias)


def _transposed(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    matrix = weight.tensors[PLAIN]
    if len(x) == 1:
        product = torch.mv(matrix, x[0]) if bias is None else torch.addmv(bias, matrix, x[0])
        return product[None]
    result = x.new_empty(x.shape[0], weight.out_features)
    for rows, outputs in parts(x, result):
        outputs.copy_(transposed_product(matrix, rows.T, bias))
    return result


def _in_integers(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    matrix, scale = weight.integers(0, weight.out_features)
    result = x.new_empty(x.shape[0], weight.out_features)
    for rows, outputs in parts(x, result, _DIGIT_ROWS):
        outputs.copy_(integer_product(rows, matrix, scale, bias))
    return result


def _packed_int8(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    tensors = weight.tensors
    scale = tensors[int8.SCALE].to(x.dtype)
    product = torch.ops.aten._weight_int8pack_mm(x.contiguous(), tensors[int8.WEIGHT], scale)
    return add_bias(product, bias)


def _packed_int4(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    return add_bias(_product_int4(x.contiguous(), weight), bias)


def _packed_int4_by_4(
    x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    result = x.new_empty(x.shape[0], weight.out_features)
    for rows, outputs in parts(x.contiguous(), result, 4):
        outputs.copy_(_product_int4(rows, weight))
    return add_bias(result, bias)


def _product_int4(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    packed, scales = weight.tensors[int4.WEIGHT], weight.tensors[int4.SCALES]
    group = weight.in_features // len(scales)
    product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales)
    return product


def _float32_blocks(
    x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    return compute_in_blocks(x, weight, bias, torch.float32)


def _native_blocks(
    x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    return compute_in_blocks(x, weight, bias, x.dtype)


def _unpacked(x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None) -> torch.Tensor:
    result = x.new_empty(x.shape[0], weight.out_features)
    height = _rows_at_once(x, weight)
    for begin in range(0, weight.out_features, height):
        result[:, begin : begin + height] = _unpacked_rows(x, weight, bias, begin)
    return result


def _unpacked_rows(
    x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None, begin: int
) -> torch.Tensor:
    end = min(begin + _rows_at_once(x, weight), weight.out_features)
    added = None if bias is None else bias[begin:end]
    return functional.linear(x, weight.rows(begin, end, x.dtype), added)


def _rows_at_once(x: torch.Tensor, weight: LinearWeight) -> int:
    return max(1, _UNPACKED_BYTES // (ROWS * weight.in_features * x.dtype.itemsize)) * ROWS


NATIVE = Kernel("native", _native)
"""torch's own, on the whole matrix."""

FLOAT32_BLOCKS = Kernel("float32 blocks", _float32_blocks)
"""`ROWS` outputs at a time are converted or unpacked to float32, which stays in cache. A processor
without units for half precision computes in float32 anyway, and torch's kernels for half precision
convert the weights anew for every few rows."""

TRANSPOSED = Kernel("transposed", _transposed)
"""The same product as ``(W x^T)^T``. On a processor with units for half precision it reads the
weights faster when there are few rows."""

NATIVE_BLOCKS = Kernel("native blocks", _native_blocks)
"""The same in the serving dtype: for processors with units for it."""

UNPACKED = Kernel("unpacked", _unpacked)
"""Unpacked to the serving dtype, on an accelerator."""

INTEGERS = Kernel("integers", _in_integers)
"""The inputs are written in integers, too, see `integer_product`."""

PACKED_INT8 = Kernel("packed int8", _packed_int8)
"""torch's, on the weights as they are stored."""

PACKED_INT4 = Kernel("packed int4", _packed_int4)
"""torch's, on the weights as they are stored."""

PACKED_INT4_BY_4 = Kernel("packed int4 by 4 rows", _packed_int4_by_4)
"""The same for 4 rows at a time: torch unpacks the weights once for so many, and has to keep fewer
sums in registers."""
