"""Whether a request is bulk work: one of the lines of a batch, for which nobody waits.

Bulk work has a lower priority in the engine, no time limit, and no share of what may be in flight:
its runner bounds how many lines are in flight. The mark is a context variable, which the runner
sets. So a line goes the way of every request, and no route has to pass the mark on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_bulk: ContextVar[bool] = ContextVar("is_bulk", default=False)


@contextmanager
def bulk_work() -> Iterator[None]:
    """Let the requests that are answered in the context be bulk work."""
    token = _is_bulk.set(True)
    try:
        yield
    finally:
        _is_bulk.reset(token)


def is_bulk() -> bool:
    """Return whether the request that is handled is bulk work."""
    return _is_bulk.get()
