"""Files on volumes that may be full, away or slow: what their errors mean, and threads for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from predictor.errors import ConfigurationError, LoadFailed, restart_may_help

_T = TypeVar("_T")


@contextlib.contextmanager
def volume_errors(sentence: str, remedy: str = "") -> Iterator[None]:
    """Turn errors of a volume into sentences.

    Args:
        sentence: What cannot be done, without the reason and a full stop.
        remedy: Sentences that follow.

    Raises:
        LoadFailed: The volume is full, or fails; the same may succeed later.
        ConfigurationError: The same would fail again, such as for a file that is not there.
    """
    try:
        yield
    except OSError as error:
        kind = LoadFailed if restart_may_help(error) else ConfigurationError
        raise kind(f"{sentence}: {error.strerror}.{remedy}") from None


class FileThreads:
    """Threads that use a volume. If it hangs, they do, and neither the event loop nor others."""

    def __init__(self, name: str, count: int = 1) -> None:
        """Create the threads; one alone calls what it is given in order.

        Args:
            name: Their name.
            count: How many there are.
        """
        self._executor = ThreadPoolExecutor(count, name)

    async def run(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Return the result of a function, which goes on if this is cancelled."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)
