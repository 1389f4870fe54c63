"""Sets torch's number of threads to the tuner's, and keeps it for later starts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import torch

from predictor.engine.thread_tuner import ThreadTuner
from predictor.shape_buckets import bucket_rows

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_WRITES = 300.0
"""Least seconds between two writes of the number, which may go to a disk that others share."""


class TunedThreads:
    """Passes real forward passes on to a tuner, and its numbers to torch.

    Attributes:
        tuner: Chooses the number.
    """

    def __init__(self, tuner: ThreadTuner, keep: Callable[[int], None]) -> None:
        """Take a tuner that begins with torch's present number of threads.

        Args:
            tuner: Chooses the number.
            keep: Keeps a chosen number for later starts. Called in a thread of its own, because it
                may hang with the volume.
        """
        self.tuner = tuner
        self._keep = keep
        self._kept = self._threads = tuner.chosen
        self._next_write = 0.0
        self._writer: threading.Thread | None = None

    def before_pass(self, tokens: int) -> None:
        """Set the number for a forward pass. Call this in the model thread: OpenMP keeps it there.

        Args:
            tokens: The tokens that it will compute, padding included.
        """
        threads = self.tuner.threads_for(bucket_rows(tokens))
        if threads != self._threads:
            torch.set_num_threads(threads)
            self._threads = threads

    def after_pass(self, tokens: int, seconds: float) -> None:
        """Note a forward pass that has succeeded.

        Args:
            tokens: The tokens that it computed, padding included.
            seconds: Seconds that it took.
        """
        tuner = self.tuner
        chosen = tuner.chosen
        tuner.record(bucket_rows(tokens), seconds, self._threads)
        if tuner.chosen != chosen:
            logger.info("Forward passes use %d threads now; it was %d", tuner.chosen, chosen)
        if tuner.chosen != self._kept:
            self._write(tuner.chosen)

    def _write(self, chosen: int) -> None:
        now = time.monotonic()
        if now < self._next_write or (self._writer is not None and self._writer.is_alive()):
            return
        self._next_write = now + _SECONDS_BETWEEN_WRITES
        self._kept = chosen
        self._writer = threading.Thread(
            target=self._keep, args=(chosen,), name="warmup-cache", daemon=True
        )
        self._writer.start()
