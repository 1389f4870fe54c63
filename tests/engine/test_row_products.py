"""Products with cached keys and values in half precision: few sizes, and each rounded once."""

from __future__ import annotations

import pytest
import torch

from predictor.engine.generation.layout import Layout, SequenceChunk
from predictor.engine.generation.row_products import multiply_keys, multiply_values
from predictor.engine.generation.row_source import Source

HEADS, SIZE, PAGES, GROUPS = 2, 16, 2000, 3
HALF = (torch.bfloat16, torch.float16)


def pool_of(dtype: torch.dtype) -> torch.Tensor:
    pool = torch.randn(HEADS, PAGES, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    pool[:, 0] = 0
    return pool


def layout_of(lengths: list[int], run: int) -> Layout:
    """Rows of one new token each, on runs of so many consecutive pages."""
    chunks = [SequenceChunk(key, length - 1, [1]) for key, length in enumerate(lengths)]
    pages = [torch.arange(length) + torch.arange(length) // run + 1 for length in lengths]
    return Layout(chunks, pages, bucket_shapes=True, pads_context=len(lengths) > 1)


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("run", [5, 100, PAGES])
@pytest.mark.parametrize("dtype", HALF)
def test_a_growing_row_is_multiplied_in_few_sizes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, run: int
) -> None:
    pool, sizes, bmm = pool_of(dtype), set(), torch.bmm

    def recorded(some: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        sizes.add((*some.shape, *other.shape, *other.stride()))
        return bmm(some, other)

    monkeypatch.setattr(torch, "bmm", recorded)
    for length in range(300, 600, 7):
        layout = layout_of([length], run)
        query = random(1, HEADS * GROUPS, 1, SIZE, dtype=dtype)
        cached = Source(pool, layout, 0)
        multiply_values(multiply_keys(query, cached), cached)
    assert len(sizes) <= 2 * 6  # of 320, 384, 448, 512, 576 and 640 tokens


@pytest.mark.parametrize("run", [5, 100, PAGES])
@pytest.mark.parametrize("dtype", HALF)
def test_each_product_is_rounded_once_however_the_pages_lie(dtype: torch.dtype, run: int) -> None:
    pool, layout = pool_of(dtype), layout_of([900, 64, 333], run)
    cached = Source(pool, layout, 0)
    columns = layout.past + layout.new
    whole = pool.index_select(1, layout.gather(pool.device).flatten()).double()
    whole = whole.view(HEADS, 3, columns, SIZE).transpose(0, 1).repeat_interleave(GROUPS, 1)
    query = random(3, HEADS * GROUPS, 1, SIZE, dtype=dtype)
    weights = random(3, HEADS * GROUPS, 1, columns, dtype=dtype)
    for product, factor, rows in (
        (multiply_keys(query, cached), query, whole.mT),
        (multiply_values(weights, cached), weights, whole),
    ):
        exact, step = factor.double() @ rows, torch.finfo(dtype).eps
        sums = 1e-7 * (factor.double().abs() @ rows.abs())  # which are in single precision
        assert product.dtype == dtype
        assert bool(((product.double() - exact).abs() <= 0.5 * step * exact.abs() + sums).all())
