"""How linear layers are computed: every way gives the same result, within documented bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from predictor.linear.formats.bitsandbytes import BitsAndBytes8
from predictor.linear.formats.format import ROWS
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.int4 import Int4
from predictor.linear.formats.int8 import Int8
from predictor.linear.formats.integers import Integers
from predictor.linear.integer_product import is_exact
from predictor.linear.kernels import (
    INTEGERS,
    PACKED_INT4,
    PACKED_INT8,
    UNPACKED,
    Compute,
    Kernel,
    LayerKind,
    allocate_most,
    kernels_for,
)
from predictor.linear.weight import LinearWeight
from predictor.live_bytes import LiveBytes

HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The dtypes of half precision, and the rounding of a value."""

OUT, IN = 2 * ROWS + 48, 96


@dataclass(frozen=True, slots=True)
class _Layer:
    weight: LinearWeight
    bias: torch.Tensor
    matrix: torch.Tensor
    """The matrix in float32."""


def _plain(dtype: torch.dtype, out: int = OUT) -> _Layer:
    matrix = (torch.randn(out, IN) / IN**0.5).to(dtype)
    return _Layer(LinearWeight.plain(matrix), torch.randn(out).to(dtype), matrix.float())


def _packed(dtype: torch.dtype, out: int = OUT) -> _Layer:
    weights = Fp8(block=(128, 128))
    scale = torch.rand(-(-out // 128), 1) / IN**0.5
    tensors = {"weight": torch.randn(out, IN).to(weights.dtype), "weight_scale_inv": scale}
    weight = LinearWeight(tensors, out, IN, weights)
    return _Layer(weight, torch.randn(out).to(dtype), weight.rows(0, out, torch.float32))


def _int8(dtype: torch.dtype, out: int = OUT) -> _Layer:
    return _quantised(Int8(), dtype, out)


def _int8_per_tensor(dtype: torch.dtype, out: int = OUT) -> _Layer:
    tensors = {
        "weight": torch.randint(-128, 128, (out, IN), dtype=torch.int8),
        "weight_scale": torch.tensor([1 / 128 / IN**0.5]),
    }
    weight = LinearWeight(tensors, out, IN, Integers(whole=True))
    return _Layer(weight, torch.randn(out).to(dtype), weight.rows(0, out, torch.float32))


def _bitsandbytes(dtype: torch.dtype, out: int = OUT) -> _Layer:
    tensors = {
        "weight": torch.randint(-127, 128, (out, IN), dtype=torch.int8),
        "SCB": torch.rand(out) / IN**0.5,
    }
    weight = LinearWeight(tensors, out, IN, BitsAndBytes8())
    return _Layer(weight, torch.randn(out).to(dtype), weight.rows(0, out, torch.float32))


def _int4(dtype: torch.dtype, out: int = OUT) -> _Layer:
    return _quantised(Int4.here(), dtype, out)


def _quantised(weights: Int8 | Int4, dtype: torch.dtype, out: int) -> _Layer:
    tensors = weights.quantise(torch.randn(out, IN) / IN**0.5)
    weight = LinearWeight(tensors, out, IN, weights)
    return _Layer(weight, torch.randn(out).to(dtype), weight.rows(0, out, torch.float32))


FORMATS = [_plain, _packed, _int8, _int8_per_tensor, _bitsandbytes, _int4]


def _kernels(layer: _Layer, dtype: torch.dtype) -> list[Kernel]:
    """Those of a processor, and those of an accelerator, which run on a processor too."""
    others = [UNPACKED] if layer.weight.format else []
    return [*kernels_for(_kind(layer, dtype)), *others]


def _kind(layer: _Layer, dtype: torch.dtype) -> LayerKind:
    return LayerKind(layer.weight.format, dtype, "cpu", layer.weight.out_features, IN)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("rows", [0, 1, 3, 70, 600])
def test_every_kernel_gives_the_same_result_in_float32(
    make: Callable[..., _Layer], rows: int
) -> None:
    layer = make(torch.float32)
    x = torch.randn(rows, IN)
    expected = functional.linear(x, layer.matrix, layer.bias)
    for kernel in _kernels(layer, torch.float32):
        torch.testing.assert_close(
            kernel.compute(x, layer.weight, layer.bias), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("dtype", list(HALF))
@pytest.mark.parametrize("rows", [1, 3, 600])
def test_kernels_differ_by_the_rounding_of_half_precision(
    make: Callable[..., _Layer], dtype: torch.dtype, rows: int
) -> None:
    layer = make(dtype)
    x = torch.randn(rows, IN).to(dtype)
    expected = functional.linear(x.float(), layer.matrix, layer.bias.float())
    for kernel in _kernels(layer, dtype):
        result = kernel.compute(x, layer.weight, layer.bias)
        assert result.dtype == dtype
        bound = HALF[dtype] * (1 + expected.abs().max().item())
        torch.testing.assert_close(result.float(), expected, rtol=0, atol=bound)


@pytest.mark.skipif(not is_exact(), reason="products of bytes overflow on this processor")
@pytest.mark.parametrize("dtype", list(HALF))
def test_integers_follow_inputs_of_any_range(dtype: torch.dtype) -> None:
    layer = _int8(dtype)
    x = torch.randn(5, IN)
    x[0] = 0
    x[1] *= 1e-4
    x[2] *= 1e3
    x[3, 7] = 100  # larger than all others together
    x = x.to(dtype)
    expected = functional.linear(x.float(), layer.matrix)
    result = INTEGERS.compute(x, layer.weight, None).float()
    errors = (result - expected).norm(dim=1)
    assert errors[0] == 0
    assert (errors[1:] <= HALF[dtype] * expected[1:].norm(dim=1)).all()


def test_a_row_that_is_not_finite_disturbs_no_other() -> None:
    layer = _int8(torch.bfloat16)
    x = torch.randn(3, IN).to(torch.bfloat16)
    x[1, 3] = torch.inf
    result = INTEGERS.compute(x, layer.weight, layer.bias)
    assert not result[1].isfinite().any()
    assert torch.equal(result[::2], INTEGERS.compute(x[::2], layer.weight, layer.bias))


def test_a_layer_may_have_no_bias() -> None:
    layer = _packed(torch.float32)
    x = torch.randn(2, IN)
    for kernel in _kernels(layer, torch.float32):
        result = kernel.compute(x, layer.weight, None)
        torch.testing.assert_close(result, x @ layer.matrix.T, rtol=1e-5, atol=1e-5)


def test_a_view_of_a_transposed_matrix_is_computed() -> None:
    matrix = torch.randn(IN, OUT, dtype=torch.bfloat16).T
    x = torch.randn(2, IN, dtype=torch.bfloat16)
    expected = functional.linear(x.float(), matrix.float())
    for kernel in kernels_for(LayerKind(None, torch.bfloat16, "cpu", OUT, IN)):
        result = kernel.compute(x, LinearWeight.plain(matrix), None)
        bound = HALF[torch.bfloat16] * expected.abs().max().item()
        torch.testing.assert_close(result.float(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("rows", [1, 70, 3000])
@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_on_meta_a_layer_allocates_as_much_as_its_hungriest_kernel(
    make: Callable[..., _Layer], dtype: torch.dtype, rows: int
) -> None:
    layer = make(dtype, 8 * ROWS)
    x = torch.zeros(rows, IN, dtype=dtype)
    kernels = kernels_for(_kind(layer, dtype))
    peaks = [_peak(kernel.compute, x, layer.weight, layer.bias) for kernel in kernels]
    tensors = {role: tensor.to("meta") for role, tensor in layer.weight.tensors.items()}
    on_meta = LinearWeight(tensors, 8 * ROWS, IN, layer.weight.format)
    result = allocate_most(x.to("meta"), on_meta, layer.bias.to("meta"))
    assert (result.shape, result.dtype) == ((rows, 8 * ROWS), dtype)
    assert _peak(allocate_most, x.to("meta"), on_meta, layer.bias.to("meta")) >= max(peaks)


def test_kernels_that_cannot_compute_a_kind_are_not_offered() -> None:
    other_panel = Int4(panel=96 - Int4.here().panel)
    assert PACKED_INT4 in kernels_for(LayerKind(Int4.here(), torch.bfloat16, "cpu", 64, 64))
    assert PACKED_INT4 not in kernels_for(LayerKind(other_panel, torch.bfloat16, "cpu", 64, 64))
    assert PACKED_INT8 in kernels_for(LayerKind(Int8(), torch.bfloat16, "cpu", 5, 48))
    assert PACKED_INT8 not in kernels_for(LayerKind(Int8(), torch.bfloat16, "cpu", 64, 40))
    in_integers = INTEGERS in kernels_for(LayerKind(Int8(), torch.float16, "cpu", 5, 40))
    assert in_integers == (HAS_AVX512 and is_exact())
    assert INTEGERS not in kernels_for(LayerKind(Int8(), torch.float32, "cpu", 64, 64))
    assert INTEGERS not in kernels_for(LayerKind(Integers(32), torch.bfloat16, "cpu", 64, 64))
    assert kernels_for(LayerKind(Int8(), torch.bfloat16, "cuda", 64, 64)) == (UNPACKED,)


ISA = "ONEDNN_MAX_CPU_ISA"
"""The variable that bounds the instructions of products of bytes."""


HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.skipif(not HAS_AVX512, reason="needs AVX-512")
def test_a_processor_whose_products_of_bytes_overflow_does_not_compute_in_integers() -> None:
    code = (
        "import torch; from predictor.linear.integer_product import is_exact\n"
        "from predictor.linear.formats.int8 import Int8\n"
        "from predictor.linear.kernels import INTEGERS, LayerKind, kernels_for\n"
        "kind = LayerKind(Int8(), torch.bfloat16, 'cpu', 64, 64)\n"
        "print(is_exact(), INTEGERS in kernels_for(kind))"
    )
    environ = {**os.environ, ISA: "AVX512_CORE"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == ["False", "False"]


def _peak(compute: Compute, x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor) -> int:
    inputs = (x, bias, *weight.tensors.values())
    with LiveBytes(excluded={tensor.untyped_storage() for tensor in inputs}) as live:
        compute(x, weight, bias)
    peak: int = live.peak
    return peak
