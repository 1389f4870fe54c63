"""Products of queries with cached keys, and of weights with cached values, row by row.

Architectures that compute attention themselves, as those with sinks, soft caps or ALiBi do, use the
cache for two products of matrices. Each row of a forward pass reads its own pages for them, one run
of consecutive pages after another, and what they compute in between is their own. Columns of
padding have keys and values of zero, as in whole rows.

Heads of queries that share a head of keys are further queries of that head, so each page is read
once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from predictor.engine.generation.layout import Layout, RowPages

_LEAST_RUN = 64
"""Tokens that the runs of a row have on average, if each is multiplied. To copy fewer takes less
time than another product."""

_LEAST_PLAIN = 4
"""Bytes of a number with which products of any size have one kernel. oneDNN compiles and keeps a
kernel for each size of products in half precision (`shape_buckets`), so those come in few sizes."""


def multiply_keys(
    query: torch.Tensor, pool: torch.Tensor, layout: Layout, window: int
) -> torch.Tensor:
    """Return the products of queries and keys, of shape (rows, heads, queries, columns).

    Args:
        query: Of shape (rows, heads, queries, size).
        pool: The keys of all pages, of shape (heads of keys, pages, size).
        layout: The rows.
        window: The window of the layer, see `Layout.past_within`.
    """
    count, heads, queries, _ = query.shape
    columns = layout.past_within(window) + layout.new
    scores = query.new_zeros(count, heads, queries, columns)
    by_head = scores.view(count, len(pool), -1, columns)
    packed = query.reshape(count, len(pool), -1, query.shape[-1])
    for index, row in enumerate(layout.row_pages(window)):
        for own, keys in _parts(row, pool, columns):
            by_head[index, :, :, own] = torch.bmm(packed[index], keys.mT)
    return scores


def multiply_values(
    weights: torch.Tensor, pool: torch.Tensor, layout: Layout, window: int
) -> torch.Tensor:
    """Return the products of weights and values, of shape (rows, heads, queries, size).

    Args:
        weights: Of shape (rows, heads, queries, columns).
        pool: The values of all pages, of shape (heads of values, pages, size).
        layout: The rows.
        window: The window of the layer, see `Layout.past_within`.
    """
    count, heads, queries, columns = weights.shape
    packed = weights.reshape(count, len(pool), -1, columns)
    outputs = [
        sum(
            torch.bmm(packed[index, :, :, own], values)
            for own, values in _parts(row, pool, columns)
        )
        for index, row in enumerate(layout.row_pages(window))
    ]
    return torch.stack(outputs).view(count, heads, queries, -1)  # type: ignore[arg-type]


def _parts(row: RowPages, pool: torch.Tensor, columns: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the columns of a row's runs, and their keys or values of shape (heads, tokens, size).

    Args:
        row: The row.
        pool: Those of all pages.
        columns: The columns of the forward pass, which end with the row.
    """
    start = columns - len(row.pages)
    if len(row.breaks) > len(row.pages) // _LEAST_RUN:
        yield slice(start, columns), row.read(pool, 0)[0]
        return
    for run in row.runs(0):
        for piece in _pieces(run) if pool.element_size() < _LEAST_PLAIN else (run,):
            yield slice(start, start + piece.stop - piece.start), pool[:, piece]
            start += piece.stop - piece.start


def _pieces(run: slice) -> Iterator[slice]:
    """Yield parts of a run: powers of two, and what is left below the shortest run."""
    start = run.start
    while start < run.stop:
        left = run.stop - start
        count = left if left < _LEAST_RUN else 1 << (left.bit_length() - 1)
        yield slice(start, start + count)
        start += count
