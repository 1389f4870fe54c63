"""Dynamic batching: texts that wait share a forward pass if their lengths are alike.

`DynamicBatching` waits for texts, chooses which of them share the next forward pass
(`batching`), runs it and calls their callbacks. `EncoderEngine` is the model thread with this
policy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from predictor.engine.encoding.batching import BatchLimits, choose_batch
from predictor.engine.encoding.inputs import EncoderCallback, EncoderInput
from predictor.engine.encoding.runner import EncoderRunner
from predictor.engine.model_thread import ModelThread
from predictor.errors import EngineBroken, GenerationFailed
from predictor.metrics import EngineMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Request:
    text: EncoderInput
    callback: EncoderCallback
    arrived: float


class EncoderEngine(ModelThread[_Request, int]):
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
        on_broken: Callable[[EngineBroken], None] | None = None,
    ) -> None:
        """Start the model thread.

        Args:
            runner: Runs the forward passes.
            limits: The limits of a forward pass.
            metrics: Takes counts and times.
            harmless: A text on which no working model of this kind fails.
            on_broken: Called in the model thread, last of all, if the model is broken for good.
        """
        self.runner = runner
        policy = DynamicBatching(runner, limits, metrics=metrics, harmless=harmless)
        super().__init__(policy, name="encoder", on_broken=on_broken)

    def submit(self, text: EncoderInput, callback: EncoderCallback) -> int:
        """Hand in a text and return its key; do not wait.

        Args:
            text: The text, with no more tokens than a forward pass may have.
            callback: Called with its result or its error.

        Raises:
            EngineBroken: The engine has ended.
        """
        return self.put(_Request(text, callback, time.monotonic()))


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
        self._waiting: dict[int, _Request] = {}
        self._running: dict[int, _Request] = {}

    def idle_seconds(self) -> float | None:
        """Return how long the oldest text still waits for others to share its forward pass."""
        if not self._waiting:
            return None
        limits = self._limits
        tokens = sum(len(request.text.ids) for request in self._waiting.values())
        if not limits.delay or len(self._waiting) >= limits.rows or tokens >= limits.tokens:
            return 0
        oldest = next(iter(self._waiting.values()))
        return max(0.0, oldest.arrived + limits.delay - time.monotonic())

    def add(self, key: int, request: _Request) -> None:
        """Put a text in line."""
        self._waiting[key] = request

    def remove(self, key: int) -> None:
        """Forget a text that waits."""
        self._waiting.pop(key, None)

    def batches(self) -> Iterator[Sequence[int]]:
        """Yield the texts of the next forward pass."""
        keys = list(self._waiting)
        lengths = [len(request.text.ids) for request in self._waiting.values()]
        batch = [keys[index] for index in choose_batch(lengths, self._limits)]
        now = time.monotonic()
        for key in batch:
            request = self._running[key] = self._waiting.pop(key)
            self._metrics.queue_seconds.observe(now - request.arrived)
            self._metrics.prompt_tokens.inc(len(request.text.ids))
        self._count()
        yield batch
        self._count()

    def compute(self, rows: Sequence[int]) -> Sequence[Any]:
        """Return the result of each text."""
        return self._runner.run([self._running[key].text for key in rows])

    def deliver(self, rows: Sequence[int], results: Sequence[Any], seconds: float) -> None:
        """Call the callbacks with the results."""
        tokens = sum(len(self._running[key].text.ids) for key in rows)
        self._metrics.count_step(rows=len(rows), seconds=seconds, tokens=tokens)
        for key, result in zip(rows, results, strict=True):
            _call(self._running.pop(key), result)

    def probe(self, failed: Sequence[int]) -> None:  # noqa: ARG002 - they hold no memory
        """Compute the harmless text, or let the model's error pass."""
        self._runner.run([self._harmless])

    def fail(self, row: int, error: GenerationFailed) -> None:
        """End a text on which the model failed."""
        _call(self._running.pop(row), error)

    def fail_all(self, error: EngineBroken) -> None:
        """End the texts of the failed forward pass, then those that wait."""
        requests = [*self._running.values(), *self._waiting.values()]
        self._running.clear()
        self._waiting.clear()
        self._count()
        for request in requests:
            _call(request, error)

    def _count(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(len(self._waiting))


def _call(request: _Request, outcome: object) -> None:
    try:
        request.callback(outcome)
    # A callback's failure is its own text's: the event loop may be gone.
    except Exception:
        logger.exception("A callback failed")
