"""Dynamic batching: texts that wait share a forward pass if their lengths are alike.

`DynamicBatching` waits for texts, chooses which of them share the next forward pass
(`batching`), runs it and calls their callbacks. `EncoderEngine` is the model thread with this
policy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from predictor.engine.encoding.batching import BatchLimits, TextQueue
from predictor.engine.encoding.inputs import EncoderCallback, EncoderInput
from predictor.engine.encoding.runner import EncoderRunner
from predictor.engine.model_thread import ModelThread, ThreadOptions
from predictor.errors import EngineBroken, GenerationFailed
from predictor.metrics import EngineMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Text:
    text: EncoderInput
    callback: EncoderCallback
    request: int | None
    arrived: float
    is_bulk: bool


class EncoderEngine(ModelThread[_Text, int]):
    """Encodes texts until it is stopped or the model is broken.

    Attributes:
        runner: Runs the forward passes.
    """

    def __init__(
        self,
        runner: EncoderRunner,
        limits: BatchLimits,
        *,
        metrics: EngineMetrics,
        harmless: EncoderInput,
        **options: Unpack[ThreadOptions],
    ) -> None:
        """Start the model thread.

        Args:
            runner: Runs the forward passes.
            limits: The limits of a forward pass.
            metrics: Takes counts and times.
            harmless: A text on which no working model of this kind fails.
            options: See `ThreadOptions`.
        """
        self.runner = runner
        policy = DynamicBatching(runner, limits, metrics=metrics, harmless=harmless)
        super().__init__(policy, name="encoder", **options)

    def submit(
        self,
        text: EncoderInput,
        callback: EncoderCallback,
        *,
        request: int | None = None,
        key: int | None = None,
        is_bulk: bool = False,
    ) -> int:
        """Hand in a text and return its key; do not wait.

        Args:
            text: The text, with no more tokens than a forward pass may have.
            callback: Called with its result or its error.
            request: The request that it belongs to, see `new_request`. None if it is the only one.
            key: Its key, if the caller gives every text one.
            is_bulk: Whether it yields to texts that are not.

        Raises:
            EngineBroken: The engine has ended.
        """
        return self.put(_Text(text, callback, request, time.monotonic(), is_bulk), key)

    def submit_all(
        self,
        texts: Sequence[EncoderInput],
        callbacks: Sequence[EncoderCallback],
        *,
        request: int | None = None,
        is_bulk: bool = False,
    ) -> list[int]:
        """Hand in the texts of a request; see `submit`."""
        options: dict[str, Any] = {"request": request, "is_bulk": is_bulk}
        together = zip(texts, callbacks, strict=True)
        return [self.submit(text, callback, **options) for text, callback in together]


class DynamicBatching:
    """The policy of the model thread for encoder tasks. Its rows are keys."""

    noun = "text"

    def __init__(
        self,
        runner: EncoderRunner,
        limits: BatchLimits,
        *,
        metrics: EngineMetrics,
        harmless: EncoderInput,
    ) -> None:
        self._runner, self._limits, self._metrics = runner, limits, metrics
        self._harmless = harmless
        self._queue = TextQueue(limits)
        self._waiting: dict[int, _Text] = {}
        self._running: dict[int, _Text] = {}

    def idle_seconds(self) -> float | None:
        """Return how long the oldest text still waits for others to share its forward pass."""
        limits, queue = self._limits, self._queue
        if queue.oldest is None:
            return None
        if not limits.delay or len(queue) >= limits.rows or queue.tokens >= limits.tokens:
            return 0
        oldest = self._waiting[queue.oldest]
        return max(0.0, oldest.arrived + limits.delay - time.monotonic())

    def add(self, key: int, request: _Text) -> None:
        """Put a text in line."""
        self._waiting[key] = request
        self._queue.add(key, len(request.text.ids), request.request, is_bulk=request.is_bulk)

    def remove(self, key: int) -> None:
        """Forget a text that waits."""
        if self._waiting.pop(key, None) is not None:
            self._queue.remove(key)

    def batches(self) -> Iterator[Sequence[int]]:
        """Yield the texts of the next forward pass."""
        batch = self._queue.take_batch()
        now = time.monotonic()
        for key in batch:
            text = self._running[key] = self._waiting.pop(key)
            if not text.is_bulk:
                self._metrics.queue_seconds.observe(now - text.arrived)
        self._metrics.prompt_tokens.inc(self._tokens(batch))
        self._count()
        yield batch
        self._count()

    def count_tokens(self, rows: Sequence[int]) -> int:
        """Return the tokens that a forward pass over these texts computes, padding included."""
        longest = max(len(self._running[key].text.ids) for key in rows)
        return self._limits.rows_of(len(rows)) * self._limits.columns(longest)

    def compute(self, rows: Sequence[int]) -> Sequence[Any]:
        """Return the result of each text."""
        return self._runner.run([self._running[key].text for key in rows])

    def deliver(self, rows: Sequence[int], results: Sequence[Any], seconds: float) -> None:
        """Call the callbacks with the results."""
        self._metrics.count_step(rows=len(rows), seconds=seconds, tokens=self._tokens(rows))
        for key, result in zip(rows, results, strict=True):
            _call(self._running.pop(key), result)

    def recover(self, failed: Sequence[int]) -> Sequence[int]:
        """Return all texts, because none depends on a pass before."""
        return failed

    def probe(self, failed: Sequence[int]) -> None:  # noqa: ARG002 - they hold no memory
        """Compute the harmless text, or let the model's error pass."""
        self._runner.run([self._harmless])

    def fail(self, row: int, error: GenerationFailed) -> None:
        """End a text on which the model failed."""
        _call(self._running.pop(row), error)

    def fail_all(self, error: EngineBroken) -> None:
        """End the texts of the failed forward pass, then those that wait."""
        texts = [*self._running.values(), *self._waiting.values()]
        for key in list(self._waiting):
            self.remove(key)
        self._running.clear()
        self._count()
        for text in texts:
            _call(text, error)

    def _tokens(self, rows: Sequence[int]) -> int:
        return sum(len(self._running[key].text.ids) for key in rows)

    def _count(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(len(self._queue) - self._queue.bulk)
        self._metrics.bulk_waiting.set(self._queue.bulk)


def _call(text: _Text, outcome: object) -> None:
    try:
        text.callback(outcome)
    # A callback's failure is its own text's: the event loop may be gone.
    except Exception:
        logger.exception("A callback failed")
