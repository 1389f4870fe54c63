"""The loop of a model that reads: many texts, one model, one thread.

Texts come in and are cancelled from any thread; everything else happens in the engine's own: it
waits for texts, chooses which are read together (`batching`), runs the model and tells the
listeners. What fails on one text's account fails that text alone: a failed pass is run again in
halves until the text at fault stands by itself. Where nothing succeeds, a pass of one harmless
token tells whether the model itself is broken, and then the engine ends.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from predictor.engine.encoding.batching import BatchLimits, choose
from predictor.engine.encoding.inputs import Listener, Text
from predictor.engine.encoding.runner import EncoderRunner
from predictor.errors import EngineBroken, GenerationFailed, PredictorError
from predictor.metrics import EngineMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    text: Text
    listener: Listener
    arrived: float


class EncoderEngine:
    """Reads texts until it is stopped or broken."""

    def __init__(
        self,
        runner: EncoderRunner,
        limits: BatchLimits,
        *,
        metrics: EngineMetrics,
        harmless: Text,
        on_broken: Callable[[EngineBroken], None] | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            runner: Runs passes of the model.
            limits: What passes are held to.
            metrics: Where counts and times go.
            harmless: What any model of its kind can read, to tell whether this one still works.
            on_broken: Is told, in the engine's thread, that the engine has ended for good.
        """
        self._runner, self._limits, self._metrics = runner, limits, metrics
        self._harmless, self._on_broken = harmless, on_broken
        self._keys = itertools.count()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: dict[int, _Waiting] = {}
        self._stopping = False
        self._broken: EngineBroken | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="reader", daemon=True)
        self._thread.start()

    def submit(self, text: Text, listener: Listener) -> int:
        """Takes a text and returns its key; does not wait.

        Args:
            text: The text, of no more tokens than a pass may have.
            listener: Who is told, in the engine's thread.

        Raises:
            EngineBroken: The engine has ended.
        """
        key, item = next(self._keys), _Waiting(text, listener, time.monotonic())
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._inbox.put(lambda: self._waiting.update({key: item}))
        return key

    def cancel(self, key: int) -> None:
        """Lets a text's place go, unless it is being read; its listener hears nothing more."""

        def drop() -> None:
            self._waiting.pop(key, None)

        self._inbox.put(drop)

    def stop(self) -> None:
        """Ends the thread after the pass that runs; who waits hears nothing more."""

        def stop() -> None:
            self._stopping = True

        self._inbox.put(stop)

    # Everything below runs in the engine's thread.

    def _loop(self) -> None:
        try:
            while not self._stopping:
                self._take_in()
                if self._waiting and not self._stopping:
                    self._step()
        # Here is the border between the engine and the process: whatever went wrong, it is over.
        except Exception as error:
            self._break(error)

    def _take_in(self) -> None:
        """Takes what has come, and waits for more where nothing waits or a pass may be fuller."""
        while not self._stopping:
            seconds = self._patience()
            try:
                self._inbox.get(block=seconds != 0, timeout=seconds)()
            except queue.Empty:
                break
        self._metrics.waiting.set(len(self._waiting))

    def _patience(self) -> float | None:
        """Seconds to wait for another text; None for as long as it takes."""
        if not self._waiting:
            return None
        limits = self._limits
        tokens = sum(len(item.text.ids) for item in self._waiting.values())
        if not limits.delay or len(self._waiting) >= limits.rows or tokens >= limits.tokens:
            return 0
        oldest = next(iter(self._waiting.values()))
        return max(0.0, oldest.arrived + limits.delay - time.monotonic())

    def _step(self) -> None:
        keys = list(self._waiting)
        lengths = [len(item.text.ids) for item in self._waiting.values()]
        batch = [self._waiting.pop(keys[place]) for place in choose(lengths, self._limits)]
        now = time.monotonic()
        for item in batch:
            self._metrics.queue_seconds.observe(now - item.arrived)
            self._metrics.prompt_tokens.inc(len(item.text.ids))
        failed: list[_Waiting] = []
        self._metrics.running.set(len(batch))
        try:
            self._pass(batch, failed)
            if len(failed) == len(batch):
                self._runner.run([self._harmless])
        except Exception as error:
            _tell_all(batch, _as_broken(error))
            raise
        finally:
            self._metrics.running.set(0)
        _tell_all(
            failed,
            GenerationFailed("The model failed on this request; the server's log has the cause."),
        )

    def _pass(self, batch: Sequence[_Waiting], failed: list[_Waiting]) -> None:
        """Runs a pass, in halves where it fails; adds what fails by itself to `failed`."""
        began = time.monotonic()
        try:
            found = self._runner.run([item.text for item in batch])
        except EngineBroken:
            raise
        # Models raise whatever they like; here is the border between texts.
        except Exception as error:
            if len(batch) == 1:
                logger.error("The model failed on a text", exc_info=error)
                failed.extend(batch)
                return
            logger.warning(
                "A pass of %d texts failed (%s); halved", len(batch), type(error).__name__
            )
            # What the failed pass computed hangs on these; its halves need the memory.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                self._pass(half, failed)
            return
        tokens = sum(len(item.text.ids) for item in batch)
        seconds = time.monotonic() - began
        self._metrics.count_step(rows=len(batch), seconds=seconds, tokens=tokens)
        for item, result in zip(batch, found, strict=True):
            _tell(item, result)

    def _break(self, error: Exception) -> None:
        logger.critical("The engine is broken", exc_info=error)
        broken = _as_broken(error)
        with self._lock:
            self._broken = broken
        while not self._inbox.empty():
            self._inbox.get()()
        _tell_all(list(self._waiting.values()), broken)
        if self._on_broken is not None:
            self._on_broken(broken)


def _as_broken(error: Exception) -> EngineBroken:
    if isinstance(error, EngineBroken):
        return error
    return EngineBroken("The model's engine has failed; the server's log has the cause.")


def _tell_all(items: Sequence[_Waiting], outcome: PredictorError) -> None:
    for item in items:
        _tell(item, outcome)


def _tell(item: _Waiting, outcome: object) -> None:
    try:
        item.listener(outcome)
    # A listener's failure is its own text's: the event loop may be gone.
    except Exception:
        logger.exception("A listener failed")
