"""Files and batches beside a server: their directory, their routes, and the queue that runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from starlette.routing import Route

from predictor.batch.api import BatchApi
from predictor.batch.queue import BatchQueue
from predictor.batch.runner import RunLimits
from predictor.batch.store import BatchStore, StoreLimits
from predictor.protocol.app import batch_endpoints
from predictor.protocol.http.codec import CodecThreads
from predictor.protocol.served import Models
from predictor.settings import Settings

logger = logging.getLogger(__name__)

_SECONDS_TO_STOP = 1.0
"""Seconds for the results to be written. A volume that hangs keeps no server from ending."""


def open_batches(settings: Settings, models: Models) -> BatchService | None:
    """Return the files and batches of a server; None if it has no directory for them.

    Raises:
        ConfigurationError: The directory cannot be written.
        LoadFailed: Its volume is full or fails.
    """
    if settings.batch_dir is None:
        return None
    return BatchService(settings.batch_dir, settings, models)


class BatchService:
    """Runs batches while it is entered as a context."""

    def __init__(self, folder: Path, settings: Settings, models: Models) -> None:
        """Open the directory; see `open_batches`."""
        limits = StoreLimits(settings.batch_dir_size, settings.batch_days)
        store = BatchStore(folder, limits)
        size = settings.admission_limits().body_bytes
        self._queue = BatchQueue(
            store,
            batch_endpoints(models, CodecThreads()),
            RunLimits.of(settings.max_batch_size, size),
            longest=settings.max_body_size,
        )
        self._api = BatchApi(store, self._queue)
        self._prefixes = dict.fromkeys((settings.openai_route_prefix, ""))
        self._running: asyncio.Task[None] | None = None

    def routes(self) -> Iterator[Route]:
        """Yield the routes."""
        return self._api.routes(self._prefixes)

    async def __aenter__(self) -> Self:
        """Begin to run batches, now that the model is loaded."""
        self._running = asyncio.create_task(self._queue.run(), name="batches")
        self._running.add_done_callback(_report)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; what is in flight is computed again after the next start."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running}, timeout=_SECONDS_TO_STOP)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("Batches run no more", exc_info=task.exception())
