"""The step loop: many sequences, one model, one thread.

Sequences come in and are cancelled from any thread; everything else happens in the engine's own:
it asks the scheduler for the next passes, runs them, chooses tokens and tells the listeners. What
fails on one sequence's account fails that sequence alone: a failed pass is run again in halves
until the row at fault stands by itself. Where nothing succeeds, a pass of one harmless token tells
whether the model itself is broken; then all sequences end with `EngineBroken` and the engine with
them, because a device that failed an assertion does not recover within the process.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from predictor.engine.generation.kv_cache import Row
from predictor.engine.generation.runner import Runner
from predictor.engine.generation.sampler import Sampler, choose_each
from predictor.engine.generation.sampling_params import (
    FinishReason,
    Listener,
    SamplingParams,
    Token,
)
from predictor.engine.generation.scheduler import Chunk, Limits, Scheduler
from predictor.errors import EngineBroken, GenerationFailed, PredictorError
from predictor.metrics import EngineMetrics

logger = logging.getLogger(__name__)

_CANARY = -1
"""The key of the pass that tells whether the model still works."""


@dataclass(slots=True)
class _Sequence:
    key: int
    prompt: Sequence[int]
    sampling: SamplingParams
    sampler: Sampler
    listener: Listener
    arrived: float
    told: float = 0.0
    tokens: list[int] = field(default_factory=list)
    """All that are known; empty until its first pass, since many may wait with the same prompt."""


class Engine:
    """Runs sequences until it is stopped or broken."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        ends: frozenset[int],
        metrics: EngineMetrics,
        on_broken: Callable[[EngineBroken], None] | None = None,
    ) -> None:
        """Starts the thread.

        Args:
            runner: Runs passes of the model.
            limits: What passes are held to.
            ends: Tokens that end a sequence.
            metrics: Where counts and times go.
            on_broken: Is told, in the engine's thread, that the engine has ended for good.
        """
        self._runner, self._ends, self._metrics = runner, ends, metrics
        self._scheduler = Scheduler(limits)
        self._on_broken = on_broken
        self._keys = itertools.count()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._sequences: dict[int, _Sequence] = {}
        self._failed: list[int] = []
        self._stopping = False
        self._broken: EngineBroken | None = None
        self._lock = threading.Lock()
        metrics.kv_limit.set(limits.kv_tokens)
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], sampling: SamplingParams, listener: Listener) -> int:
        """Takes a sequence and returns its key; does not wait.

        Args:
            prompt: Token ids of the model's vocabulary, at least one; with what is generated no
                more than the KV cache holds. It is not copied before its first pass.
            sampling: How to continue.
            listener: Who is told.

        Raises:
            EngineBroken: The engine has ended.
        """
        sampler = Sampler(sampling, prompt)
        sequence = _Sequence(
            next(self._keys), prompt, sampling, sampler, listener, time.monotonic()
        )
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._inbox.put(lambda: self._add(sequence))
        return sequence.key

    def cancel(self, key: int) -> None:
        """Lets a sequence's place go at the next token; its listener hears nothing more."""
        self._inbox.put(lambda: self._drop(key))

    def stop(self) -> None:
        """Ends the thread after the pass that runs; sequences that run hear nothing more."""

        def stop() -> None:
            self._stopping = True

        self._inbox.put(stop)

    # Everything below runs in the engine's thread.

    def _loop(self) -> None:
        try:
            while not self._stopping:
                self._take_in()
                self._step()
                self._count()
        # Here is the border between the engine and the process: whatever went wrong, it is over.
        except Exception as error:
            self._break(error)

    def _take_in(self) -> None:
        is_idle = not self._sequences
        while is_idle or not self._inbox.empty():
            self._inbox.get()()
            is_idle = not (self._sequences or self._stopping)

    def _add(self, sequence: _Sequence) -> None:
        self._scheduler.add(sequence.key, len(sequence.prompt))
        self._sequences[sequence.key] = sequence

    def _drop(self, key: int) -> None:
        if self._sequences.pop(key, None) is not None:
            self._scheduler.remove(key)
            self._runner.release(key)
            self._count()

    def _count(self) -> None:
        self._metrics.running.set(self._scheduler.running)
        self._metrics.waiting.set(self._scheduler.waiting)
        self._metrics.kv_used.set(self._scheduler.cached)

    def _step(self) -> None:
        step = self._scheduler.plan()
        for key in step.preempted:
            self._runner.release(key)
            self._metrics.preemptions.inc()
        for chunks in step.passes:
            if not self._pass(chunks):
                self._check_alive()
            self._end_failed()

    def _pass(self, chunks: Sequence[Chunk]) -> bool:
        """Runs a pass, in halves where it fails; returns whether a row succeeded."""
        sequences = [self._sequences[chunk.key] for chunk in chunks]
        began = time.monotonic()
        for sequence in sequences:
            if not sequence.tokens:
                sequence.tokens = list(sequence.prompt)
                self._metrics.queue_seconds.observe(began - sequence.arrived)
                self._metrics.prompt_tokens.inc(len(sequence.prompt))
        try:
            logits = self._runner.run(
                [
                    Row(chunk.key, chunk.start, sequence.tokens[chunk.start : chunk.end])
                    for chunk, sequence in zip(chunks, sequences, strict=True)
                ]
            )
            tokens = choose_each(
                [
                    sequence.sampler if chunk.end == len(sequence.tokens) else None
                    for chunk, sequence in zip(chunks, sequences, strict=True)
                ],
                logits,
            )
        except EngineBroken:
            raise
        # Models raise whatever they like; here is the border between sequences.
        except Exception as error:
            return self._halve(chunks, error)
        told = sum(isinstance(token, Token) for token in tokens)
        self._metrics.count_step(rows=len(chunks), seconds=time.monotonic() - began, tokens=told)
        for chunk, sequence, token in zip(chunks, sequences, tokens, strict=True):
            if self._scheduler.fed(chunk) and token is not None:
                self._tell(sequence, token)
        return True

    def _halve(self, chunks: Sequence[Chunk], error: Exception) -> bool:
        if len(chunks) == 1:
            logger.error("The model failed on a sequence", exc_info=error)
            self._failed.append(chunks[0].key)
            return False
        logger.warning(
            "A pass of %d sequences failed (%s); halved", len(chunks), type(error).__name__
        )
        # What the failed pass computed hangs on these; its halves need the memory.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        middle = len(chunks) // 2
        done = [self._pass(half) for half in (chunks[:middle], chunks[middle:])]
        return any(done)

    def _tell(self, sequence: _Sequence, token: Token | Exception) -> None:
        if isinstance(token, Exception):
            logger.error("No token can be chosen for a sequence", exc_info=token)
            self._end(sequence.key, _failed())
            return
        self._time(sequence)
        sequence.tokens.append(token.id)
        try:
            is_over = sequence.listener.token(token)
        # A listener's failure is its own sequence's.
        except Exception:
            logger.exception("A listener failed")
            self._end(sequence.key, _failed())
            return
        ending = self._ending(sequence, token, is_over=is_over)
        if ending is None:
            self._scheduler.grew(sequence.key)
        else:
            self._end(sequence.key, ending)

    def _ending(self, sequence: _Sequence, token: Token, *, is_over: bool) -> FinishReason | None:
        if is_over:
            return "stop_sequence"
        if token.id in self._ends:
            return "eos_token"
        generated = len(sequence.tokens) - len(sequence.prompt)
        return "length" if generated >= sequence.sampling.max_new_tokens else None

    def _time(self, sequence: _Sequence) -> None:
        now = time.monotonic()
        self._metrics.generated_tokens.inc()
        if sequence.told:
            self._metrics.inter_token_seconds.observe(now - sequence.told)
        else:
            self._metrics.first_token_seconds.observe(now - sequence.arrived)
        sequence.told = now

    def _end(self, key: int, outcome: FinishReason | PredictorError) -> None:
        listener = self._sequences[key].listener
        self._drop(key)
        if not _ended(listener, outcome) and not isinstance(outcome, PredictorError):
            _ended(listener, _failed())  # whoever waits shall not wait until the deadline

    def _end_failed(self) -> None:
        """Tells those that failed alone, once it is known that not all has failed."""
        for key in self._failed:
            self._end(key, _failed())
        self._failed = []

    def _check_alive(self) -> None:
        """Runs one harmless token; raises what the model raises if it is broken."""
        for key in self._failed:
            self._runner.release(key)  # their memory may be all that there is
        try:
            self._runner.run([Row(_CANARY, 0, [0])]).argmax().item()
        finally:
            self._runner.release(_CANARY)

    def _break(self, error: Exception) -> None:
        logger.critical("The engine is broken", exc_info=error)
        broken = (
            error
            if isinstance(error, EngineBroken)
            else EngineBroken("The model's engine has failed; the server's log has the cause.")
        )
        with self._lock:
            self._broken = broken
        while not self._inbox.empty():
            self._inbox.get()()
        for key in list(self._sequences):
            self._end(key, broken)
        if self._on_broken is not None:
            self._on_broken(broken)


def _ended(listener: Listener, outcome: FinishReason | PredictorError) -> bool:
    """Tells a listener how its sequence ended; returns whether it took that."""
    try:
        listener.end(outcome)
    except Exception:
        logger.exception("A listener failed at its end")
        return False
    return True


def _failed() -> GenerationFailed:
    return GenerationFailed("The model failed on this request; the server's log has the cause.")
