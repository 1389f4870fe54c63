"""Which kernel a layer is computed with, by its kind and its rows."""

from __future__ import annotations

import torch
from torch.nn import functional

from predictor.linear.kernels import NATIVE, Kernel, LayerKind
from predictor.linear.table import BUCKETS, LinearKernels, bucket_of
from predictor.linear.weight import LinearWeight

KIND = LayerKind(None, torch.bfloat16, "cpu", 8, 4)


def test_rows_fall_into_buckets_that_double() -> None:
    assert [bucket_of(rows) for rows in (0, 1, 2, 3, 4, 5, 8, 9)] == [0, 0, 1, 2, 2, 3, 3, 4]
    assert bucket_of(10**9) == BUCKETS - 1


def test_a_layer_is_computed_by_the_kernel_that_is_chosen_for_its_rows() -> None:
    kernels = LinearKernels()
    weight = LinearWeight.plain(torch.ones(8, 4, dtype=torch.bfloat16))
    marker = Kernel("marker", lambda x, *_: x.new_full((len(x), 8), 7))
    kernels.of(KIND).choose(bucket_of(2), marker)
    two, three = (torch.ones(rows, 4, dtype=torch.bfloat16) for rows in (2, 3))
    assert kernels.linear(two, weight, None).eq(7).all()
    assert kernels.linear(three, weight, None).eq(4).all()


def test_inputs_may_have_any_number_of_dimensions() -> None:
    kernels = LinearKernels()
    matrix, bias = torch.randn(8, 4), torch.randn(8)
    for shape in ((4,), (3, 4), (2, 3, 4), (2, 1, 3, 4)):
        x = torch.randn(shape)
        expected = functional.linear(x, matrix, bias)
        torch.testing.assert_close(
            kernels.linear(x, LinearWeight.plain(matrix), bias), expected, rtol=1e-5, atol=1e-5
        )
        on_meta = LinearWeight.plain(matrix.to("meta"))
        assert kernels.linear(x.to("meta"), on_meta, bias.to("meta")).shape == expected.shape


def test_the_kernel_that_needs_no_timing_comes_first() -> None:
    assert LinearKernels().of(KIND).chosen == [NATIVE] * BUCKETS
    assert LinearKernels().of(KIND).candidates[0] == NATIVE
