"""Continuous batching: many sequences grow by one token in every step of the model thread.

`ContinuousBatching` asks the scheduler for the next forward passes, runs them, samples tokens and
tells the callbacks. `Engine` is the model thread with this policy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Unpack

from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.generated_sequence import GeneratedSequence
from predictor.engine.generation.grammar import Vocabulary
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.page_pool import PagePool
from predictor.engine.generation.prefix_cache import PrefixCache
from predictor.engine.generation.prefixes import NoPrefixes, Prefixes
from predictor.engine.generation.runner import Runner
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import (
    FinishReason,
    SamplingParams,
    SequenceCallback,
    Token,
)
from predictor.engine.generation.scheduler import Scheduler
from predictor.engine.generation.token_mask import MaskFactory, TokenMask
from predictor.engine.model_thread import ModelThread, ThreadOptions, request_failed
from predictor.errors import EngineBroken, GenerationFailed, PredictorError
from predictor.metrics import EngineMetrics

logger = logging.getLogger(__name__)

_PROBE = -1
"""The key of the forward pass that tells whether the model still works."""


class Engine(ModelThread[GeneratedSequence, Chunk]):
    """Generates sequences until it is stopped or the model is broken.

    Attributes:
        runner: Runs the forward passes.
        limits: The limits of the KV cache and of a forward pass.
    """

    def __init__(
        self,
        runner: Runner,
        limits: SchedulerLimits,
        *,
        eos_token_ids: frozenset[int],
        metrics: EngineMetrics,
        pages: PagePool | None = None,
        **options: Unpack[ThreadOptions],
    ) -> None:
        """Start the model thread.

        Args:
            runner: Runs the forward passes.
            limits: The limits of the KV cache and of a forward pass.
            eos_token_ids: Tokens that end a sequence.
            metrics: Takes counts and times.
            pages: The runner's pages, if sequences share those of a prefix; else None.
            options: See `ThreadOptions`.
        """
        self.runner, self.limits, self._eos_token_ids = runner, limits, eos_token_ids
        self._masks = MaskFactory(self.call)
        policy = ContinuousBatching(runner, limits, metrics, pages)
        super().__init__(policy, name="engine", **options)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        callback: SequenceCallback,
        *,
        request: int | None = None,
        key: int | None = None,
        scope: bytes = b"",
        is_bulk: bool = False,
    ) -> int:
        """Hand in a sequence and return its key; do not wait.

        Args:
            prompt: Token ids of the model's vocabulary, at least one. Prompt and reply together
                must fit in the KV cache. The prompt is not copied before its first forward pass.
            params: How the sequence is continued.
            callback: Called with its tokens and its end.
            request: The request that it belongs to, see `new_request`. None if it is the only one.
            key: Its key, if the caller gives every sequence one.
            scope: Sequences of equal scopes share what is computed of equal prefixes.
            is_bulk: Whether it yields to sequences that are not.

        Raises:
            EngineBroken: The engine has ended.
        """
        number = self.new_request() if key is None else key
        own = frozenset() if params.ignore_eos else self._eos_token_ids
        now, ends = time.monotonic(), own | params.end_tokens

        def begin(mask: TokenMask | None) -> None:
            fields = prompt, params, Sampler(params, prompt, ends, mask), callback, request, scope
            self.put(GeneratedSequence(*fields, is_bulk, now), number)

        self._masks.begin(number, params.grammar, ends, begin, callback.on_finish)
        return number

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Take the vocabulary that grammars are followed with, before the first such sequence."""
        self._masks.use_vocabulary(vocabulary)

    def cancel(self, key: int) -> None:
        """Forget a sequence after the current step. Its callback is not called again."""
        self._masks.cancel(key)
        super().cancel(key)


class ContinuousBatching:
    """The policy of the model thread for generation."""

    noun = "sequence"

    def __init__(
        self,
        runner: Runner,
        limits: SchedulerLimits,
        metrics: EngineMetrics,
        pages: PagePool | None = None,
    ) -> None:
        self._runner, self._limits, self._metrics = runner, limits, metrics
        self._prefixes: Prefixes = NoPrefixes()
        if pages is not None:
            self._prefixes = PrefixCache(pages, self._known_tokens)
        self._scheduler = Scheduler(limits, self._prefixes)
        self._batch_sampler = BatchSampler()
        self._sequences: dict[int, GeneratedSequence] = {}
        metrics.kv_limit.set(limits.kv_tokens if limits.keeps_tokens else 0)

    def idle_seconds(self) -> float | None:
        """Return that there is nothing to wait for while a sequence is left."""
        return 0 if self._sequences else None

    def add(self, key: int, request: GeneratedSequence) -> None:
        """Put a sequence in line."""
        self._scheduler.add(key, len(request.prompt), request.request, is_bulk=request.is_bulk)
        self._prefixes.begin(key, request.prefix_scope)
        self._sequences[key] = request

    def remove(self, key: int) -> None:
        """Forget a sequence and free its KV pages."""
        if self._sequences.pop(key, None) is not None:
            self._scheduler.remove(key)
            self._runner.release(key)
            self._prefixes.end(key)
            self._count()

    def batches(self) -> Iterator[Sequence[Chunk]]:
        """Yield the forward passes that the scheduler plans for the next step."""
        step = self._scheduler.plan()
        for key in step.preempted:
            self._runner.release(key)
            self._metrics.preemptions.inc()
        for rows in step.batches:
            if kept := self._kept(rows):
                yield kept
        self._count()

    def count_tokens(self, rows: Sequence[Chunk]) -> int:
        """Return the tokens that a forward pass over these rows computes, padding included."""
        return self._limits.computed_tokens(len(rows), max(chunk.count for chunk in rows))

    def compute(self, rows: Sequence[Chunk]) -> list[Token | Exception | None]:
        """Return each row's next token, its error, or None if it has tokens left to compute."""
        sequences = [self._sequences[chunk.key] for chunk in rows]
        for chunk, sequence in zip(rows, sequences, strict=True):
            if not sequence.tokens:
                self._start(sequence, chunk.start)
        pairs = list(zip(rows, sequences, strict=True))
        chunks = [
            SequenceChunk(c.key, c.start, s.tokens[c.start : c.end], s.params.adapter)
            for c, s in pairs
        ]
        logits = self._runner.run(chunks)
        samplers = [s.sampler if c.end == len(s.tokens) else None for c, s in pairs]
        try:
            return self._batch_sampler.sample(samplers, logits)
        except Exception:
            if not self._limits.keeps_every_position:  # what came before the chunks may be gone
                for chunk in rows:
                    self._runner.release(chunk.key)
            raise

    def deliver(
        self, rows: Sequence[Chunk], results: list[Token | Exception | None], seconds: float
    ) -> None:
        """Note that the chunks are cached, and pass the tokens on."""
        tokens = sum(isinstance(token, Token) for token in results)
        self._metrics.count_step(rows=len(rows), seconds=seconds, tokens=tokens)
        for chunk, token in zip(rows, results, strict=True):
            if not isinstance(token, Exception):
                self._prefixes.enter(chunk)
            if self._scheduler.mark_computed(chunk) and token is not None:
                self._continue(chunk.key, token)

    def recover(self, failed: Sequence[Chunk]) -> Sequence[Chunk]:
        """Return the chunks whose sequences still have what comes before; plan the others anew."""
        return self._kept(failed)

    def probe(self, failed: Sequence[Chunk]) -> None:
        """Compute one harmless token, or let the model's error pass."""
        for chunk in failed:
            self._runner.release(chunk.key)  # their memory may be all that there is
        try:
            self._runner.run([SequenceChunk(_PROBE, 0, [0])]).argmax().item()
        finally:
            self._runner.release(_PROBE)

    def fail(self, row: Chunk, error: GenerationFailed) -> None:
        """End a sequence on which the model failed."""
        self._finish(row.key, error)

    def fail_all(self, error: EngineBroken) -> None:
        """End all sequences."""
        for key in list(self._sequences):
            self._finish(key, error)

    def _kept(self, rows: Sequence[Chunk]) -> list[Chunk]:
        """Return the chunks that can be computed; the other sequences begin anew."""
        lost = [chunk for chunk in rows if chunk.start and not self._runner.holds(chunk.key)]
        for chunk in lost:
            self._runner.release(chunk.key)
            self._scheduler.restart(chunk)
        if lost:
            logger.warning("%d sequences lost their cache and are computed again", len(lost))
        return [chunk for chunk in rows if chunk not in lost]

    def _known_tokens(self, key: int) -> Sequence[int]:
        return self._sequences[key].known_tokens

    def _start(self, sequence: GeneratedSequence, cached: int) -> None:
        sequence.begin(cached)
        self._metrics.queue_seconds.observe(time.monotonic() - sequence.arrived)
        self._metrics.prompt_tokens.inc(len(sequence.prompt))
        self._metrics.cached_prompt_tokens.inc(cached)

    def _continue(self, key: int, token: Token | Exception) -> None:
        if isinstance(token, Exception):
            trace = None if isinstance(token, GenerationFailed) else token
            logger.error("No token can be chosen for a sequence", exc_info=trace)
            self._prefixes.forget(key)
            self._finish(key, token if isinstance(token, GenerationFailed) else request_failed())
            return
        sequence = self._sequences[key]
        self._time(sequence)
        try:
            is_stopped = sequence.take(token)
        # A callback's failure is its own sequence's.
        except Exception:
            logger.exception("A callback failed")
            self._finish(key, request_failed())
            return
        reason = self._finish_reason(sequence, token, is_stopped=is_stopped)
        if reason is None:
            self._scheduler.append_token(key)
        else:
            self._finish(key, reason)

    def _finish_reason(
        self, sequence: GeneratedSequence, token: Token, *, is_stopped: bool
    ) -> FinishReason | None:
        if is_stopped:
            return "stop_sequence"
        if token.id in sequence.sampler.ends or sequence.sampler.is_complete:
            return "eos_token"
        generated = len(sequence.tokens) - len(sequence.prompt)
        return "length" if generated >= sequence.params.max_new_tokens else None

    def _time(self, sequence: GeneratedSequence) -> None:
        now = time.monotonic()
        self._metrics.generated_tokens.inc()
        if sequence.last_token:
            self._metrics.inter_token_seconds.observe(now - sequence.last_token)
        else:
            self._metrics.first_token_seconds.observe(now - sequence.arrived)
        sequence.last_token = now

    def _finish(self, key: int, outcome: FinishReason | PredictorError) -> None:
        sequence = self._sequences[key]
        self.remove(key)
        if not sequence.finish(outcome) and not isinstance(outcome, PredictorError):
            sequence.finish(request_failed())  # else its client waits until the deadline

    def _count(self) -> None:
        self._metrics.running.set(self._scheduler.running)
        self._metrics.waiting.set(self._scheduler.waiting)
        self._metrics.kv_used.set(self._scheduler.cached)
