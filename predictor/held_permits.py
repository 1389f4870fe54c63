"""Permits of requests whose answers are large, which are held until the answer is sent.

A client may read slowly, and its answer takes memory until then. That an answer is being sent is a
context variable, which whoever sends it sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from predictor.admission import Permit

_held: ContextVar[ExitStack | None] = ContextVar("held_permits", default=None)


@contextmanager
def until_sent() -> Iterator[ExitStack]:
    """Hold permits of requests that are answered in the context.

    Closing what this returns releases them; the end of the context does so in every case.
    """
    with ExitStack() as held:
        token = _held.set(held)
        try:
            yield held
        finally:
            _held.reset(token)


def release_when_sent(permit: Permit) -> None:
    """Release a permit once the answer of its request is sent, or now if nobody says when."""
    held = _held.get()
    if held is None:
        permit.release()
    else:
        held.callback(permit.release)
