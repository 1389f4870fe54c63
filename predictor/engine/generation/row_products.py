"""Products of queries with cached keys, and of weights with cached values, row by row.

Architectures that compute attention themselves, as those with sinks, soft caps or ALiBi do, use the
cache for two products of matrices. Each row of a forward pass reads its own pages for them, and
what they compute in between is their own. Columns of padding have keys and values of zero, as in
whole rows.

In single precision, one run of consecutive pages after another is multiplied in place. In half
precision, oneDNN compiles and keeps a kernel for each size of products. So the pages of one row at
a time are copied, with padding up to one of a few lengths (`shape_buckets`). That is faster, too,
than the many products of runs in parts of few lengths, and rounds each result once.

Heads of queries that share a head of keys are further queries of that head, so each page is read
once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import pad

from predictor.engine.generation.layout import RowPages
from predictor.engine.generation.row_source import Source
from predictor.shape_buckets import LEAST_PLAIN, bucket_context

_LEAST_RUN = 64
"""Tokens that the runs of a row have on average, if each is multiplied. To copy fewer takes less
time than another product."""


def multiply_keys(query: torch.Tensor, source: Source) -> torch.Tensor:
    """Return the products of queries and keys, of shape (rows, heads, queries, columns).

    Args:
        query: Of shape (rows, heads, queries, size).
        source: The keys, of as many heads or fewer.
    """
    count, heads, columns, size = source.shape
    scores = query.new_zeros(*query.shape[:-1], columns)
    by_head = scores.view(count, heads, -1, columns)
    packed = query.reshape(count, heads, -1, size)
    for index, row in enumerate(source.row_pages()):
        for own, keys in _parts(row, source.pool, columns):
            products = torch.bmm(packed[index], keys.mT)
            by_head[index, :, :, own] = products[..., : own.stop - own.start]
    return scores


def multiply_values(weights: torch.Tensor, source: Source) -> torch.Tensor:
    """Return the products of weights and values, of shape (rows, heads, queries, size).

    Args:
        weights: Of shape (rows, heads, queries, columns).
        source: The values, of as many heads or fewer.
    """
    count, heads, columns, size = source.shape
    packed = weights.reshape(count, heads, -1, columns)
    outputs = [
        sum(
            torch.bmm(_padded(packed[index, :, :, own], values.shape[1]), values)
            for own, values in _parts(row, source.pool, columns)
        )
        for index, row in enumerate(source.row_pages())
    ]
    return torch.stack(outputs).view(*weights.shape[:-1], size)  # type: ignore[arg-type]


def _parts(row: RowPages, pool: torch.Tensor, columns: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield columns of a row, and their keys or values of shape (heads, tokens, size).

    In half precision, tokens of padding follow those of the columns.

    Args:
        row: The row.
        pool: Those of all pages.
        columns: The columns of the forward pass, which end with the row.
    """
    start = columns - len(row.pages)
    if pool.element_size() < LEAST_PLAIN:
        pages = _padded(row.pages, bucket_context(len(row.pages)))
        yield slice(start, columns), pool.index_select(1, pages)
    elif len(row.breaks) > len(row.pages) // _LEAST_RUN:
        yield slice(start, columns), row.read(pool, 0)[0]
    else:
        for run in row.runs(0):
            yield slice(start, start + run.stop - run.start), pool[:, run]
            start += run.stop - run.start


def _padded(columns: torch.Tensor, count: int) -> torch.Tensor:
    """Return so many columns: weights, or pages, of which page 0 is padding."""
    added = count - columns.shape[-1]
    return pad(columns, (0, added)) if added else columns
