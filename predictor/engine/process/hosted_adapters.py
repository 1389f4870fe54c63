"""Adapters that come and go while the engine runs, in the engine process.

An adapter that is to go refuses new sequences at once, and stays in memory until the last sequence
that uses it has ended.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from predictor.engine.process.channel import Channel
from predictor.engine.process.messages import AdapterLoaded
from predictor.errors import LoadFailed, PredictorError, unexpected

logger = logging.getLogger(__name__)


class AdapterLoader(Protocol):
    """Loads adapters beside the model."""

    def load(self, key: str, source: str) -> None:
        """Load an adapter; raise a `PredictorError` that says why it cannot be."""
        ...

    def unload(self, key: str) -> None:
        """Forget an adapter that no sequence uses; do nothing if it is not loaded."""
        ...


class HostedAdapters:
    """The adapters that the other process has had loaded, and the sequences that use them."""

    def __init__(self, loader: AdapterLoader, channel: Channel) -> None:
        """Begin without any.

        Args:
            loader: Loads them.
            channel: Takes the answers.
        """
        self._loader = loader
        self._channel = channel
        self._lock = threading.Lock()
        self._closed: set[str] = set()
        self._adapter_of: dict[int, str] = {}

    def load(self, key: str, source: str) -> None:
        """Load an adapter in a thread of its own, and tell the other process of the outcome."""
        threading.Thread(target=self._load, args=(key, source), name="adapter", daemon=True).start()

    def unload(self, key: str) -> None:
        """Let no more sequences use an adapter, and forget it after the last one that does."""
        with self._lock:
            self._closed.add(key)
            is_unused = key not in self._adapter_of.values()
        if is_unused:
            self._loader.unload(key)

    def begin(self, sequence: int, adapter: str | None) -> bool:
        """Note the adapter of a sequence; return False if the adapter is unloaded."""
        if adapter is None:
            return True
        with self._lock:
            if adapter in self._closed:
                return False
            self._adapter_of[sequence] = adapter
        return True

    def end(self, sequence: int) -> None:
        """Forget a sequence, and its adapter if that waited for it."""
        with self._lock:
            adapter = self._adapter_of.pop(sequence, None)
            if adapter not in self._closed or adapter in self._adapter_of.values():
                return
        self._loader.unload(adapter)

    def _load(self, key: str, source: str) -> None:
        error: PredictorError | None = None
        try:
            self._loader.load(key, source)
        except PredictorError as refusal:
            error = refusal
        # Libraries raise errors of any type, and the other process waits for an answer.
        except Exception as failure:
            logger.exception("An adapter cannot be loaded because of an error that nobody expected")
            error = LoadFailed(unexpected(failure))
        self._channel.send(AdapterLoaded(key, error))
