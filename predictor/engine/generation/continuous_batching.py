"""Continuous batching: the policy of the model thread for generation.

It asks the scheduler for the next forward passes, runs them, samples tokens, verifies drafts, and
tells the callbacks. Many sequences grow by a token or more in every step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.draft_model import DraftModel
from predictor.engine.generation.draft_trials import DraftTrials
from predictor.engine.generation.drafter import Drafter
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits
from predictor.engine.generation.gathering import Gathering
from predictor.engine.generation.generated_sequence import GeneratedSequence
from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.prefix_cache import PrefixCache
from predictor.engine.generation.prefixes import NoPrefixes, Prefixes
from predictor.engine.generation.runner import Runner
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import FinishReason, Token
from predictor.engine.generation.scheduler import Scheduler
from predictor.engine.generation.verification import Sampled, sample_rows
from predictor.engine.model_thread import request_failed
from predictor.errors import EngineBroken, GenerationFailed, PredictorError
from predictor.metrics import EngineMetrics

logger = logging.getLogger(__name__)

_PROBE = -1
"""The key of the forward pass that tells whether the model still works."""


class ContinuousBatching:
    """The policy of the model thread for generation."""

    noun = "sequence"

    def __init__(
        self,
        runner: Runner,
        limits: SchedulerLimits,
        metrics: EngineMetrics,
        cache: PagedKVCache | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        shares_states = cache is not None and cache.keeps_state
        limits = replace(limits, shares_states=shares_states)
        self._runner, self._limits, self._metrics = runner, limits, metrics
        self._prefixes: Prefixes = NoPrefixes()
        if cache is not None:
            states = cache.states if shares_states else None
            self._prefixes = PrefixCache(
                cache.pages, self._known_tokens, states, keeps_tokens=cache.keeps_tokens
            )
        self._sequences: dict[int, GeneratedSequence] = {}
        trials = DraftTrials() if limits.tries_drafts else None
        self._drafter = Drafter(self._sequences, draft_model, limits.lookup_tokens, trials)
        self._scheduler = Scheduler(limits, self._prefixes, self._drafter)
        self._batch_sampler = BatchSampler()
        self._gathering = Gathering()
        metrics.kv_limit.set(limits.kv_tokens if limits.keeps_tokens else 0)

    def idle_seconds(self) -> float | None:
        """Return for how long to gather sequences; nothing while one is computed."""
        if not self._sequences:
            return None
        return 0 if self._scheduler.running else self._gathering.seconds_left

    def add(self, key: int, request: GeneratedSequence) -> None:
        """Put a sequence in line."""
        self._gathering.note_arrival(is_first=not self._sequences)
        self._scheduler.add(key, len(request.prompt), request.request, is_bulk=request.is_bulk)
        scope = request.prefix_scope
        if request.params.prompt_logprobs is not None:
            scope = b"prompt logprobs %d" % key  # all of its prompt is computed
        self._prefixes.begin(key, scope)
        self._sequences[key] = request

    def remove(self, key: int) -> None:
        """Forget a sequence and free its KV pages."""
        if self._sequences.pop(key, None) is not None:
            self._scheduler.remove(key)
            self._runner.release(key)
            self._drafter.end(key)
            self._prefixes.end(key)
            self._count()

    def batches(self) -> Iterator[Sequence[Chunk]]:
        """Yield the forward passes that the scheduler plans for the next step."""
        step = self._scheduler.plan()
        for key in step.preempted:
            self._runner.release(key)
            self._drafter.release(key)
            if not self._sequences[key].is_bulk:  # which yields
                self._metrics.preemptions.inc()
        for rows in step.batches:
            if kept := self._kept(rows):
                yield kept
        self._count()

    def count_tokens(self, rows: Sequence[Chunk]) -> int:
        """Return the tokens that a forward pass over these rows computes, padding included."""
        return self._limits.computed_tokens(len(rows), max(chunk.count for chunk in rows))

    def compute(self, rows: Sequence[Chunk]) -> list[Sampled]:
        """Return each row's next tokens or its error; nothing if it has tokens left to compute."""
        for chunk in rows:
            sequence = self._sequences[chunk.key]
            if not sequence.tokens:
                self._start(sequence, chunk.start)
        self._drafter.compute(rows)
        chunks = [self._with_tokens(chunk) for chunk in rows]
        logits = self._runner.run(chunks)
        samplers = [self._due_sampler(row) for row in chunks]
        try:
            sampled = sample_rows(chunks, samplers, logits, self._batch_sampler)
        except Exception:
            if not self._limits.keeps_every_position:  # what came before the chunks may be gone
                for row in chunks:
                    self._runner.release(row.key)
            raise
        for row, tokens in zip(chunks, sampled, strict=True):
            if row.drafts:
                self._runner.truncate(row.key, row.known_end + max(0, len(tokens) - 1))
        return sampled

    def deliver(self, rows: Sequence[Chunk], results: list[Sampled], seconds: float) -> None:
        """Note that the chunks are cached, and pass the tokens on."""
        tokens = sum(isinstance(token, Token) for sampled in results for token in sampled)
        self._metrics.count_step(rows=len(rows), seconds=seconds, tokens=tokens)
        self._drafter.note(rows, tokens, seconds)
        self._gathering.note_pass(seconds)
        for chunk, sampled in zip(rows, results, strict=True):
            if drafted := len(self._draft_of(chunk)):
                source = self._drafter.source(chunk.key)
                self._metrics.count_drafts(source, drafted, max(0, len(sampled) - 1))
            error = self._sequences[chunk.key].pass_scores()
            if error is None:
                self._advance(chunk.known_part, sampled)
            else:
                self._finish(chunk.key, error)

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

    def _with_tokens(self, chunk: Chunk) -> SequenceChunk:
        sequence = self._sequences[chunk.key]
        tokens = sequence.tokens[chunk.start : chunk.known_part.end]
        draft = self._draft_of(chunk)
        return SequenceChunk(
            chunk.key,
            chunk.start,
            [*tokens, *draft],
            sequence.params.adapter,
            drafts=len(draft),
            scores=sequence.begin_scores(chunk.start, chunk.known_part.end),
        )

    def _draft_of(self, chunk: Chunk) -> Sequence[int]:
        """Return the tokens of a chunk's draft; the draft model may have computed fewer."""
        return self._drafter.tokens(chunk.key)[: chunk.drafts] if chunk.drafts else ()

    def _due_sampler(self, row: SequenceChunk) -> Sampler | None:
        sequence = self._sequences[row.key]
        if sequence.is_prompt_only or row.known_end < len(sequence.tokens):
            return None
        return sequence.sampler

    def _advance(self, chunk: Chunk, sampled: Sampled) -> None:
        """Take the tokens of a row as if accepted drafts had been computed one by one."""
        due: Sequence[Token | Exception | None] = sampled or (None,)
        for index, token in enumerate(due, 1):
            if not isinstance(token, Exception):
                self._prefixes.enter(chunk)
            is_due = self._scheduler.mark_computed(chunk)
            if is_due and token is not None:
                self._continue(chunk.key, token, is_last=index == len(due))
            elif is_due:
                self._finish(chunk.key, "length")
            if chunk.key not in self._sequences:
                return
            chunk = chunk.following

    def _known_tokens(self, key: int) -> Sequence[int]:
        return self._sequences[key].known_tokens

    def _start(self, sequence: GeneratedSequence, cached: int) -> None:
        sequence.begin(cached)
        if not sequence.is_bulk:
            self._metrics.queue_seconds.observe(time.monotonic() - sequence.arrived)
        self._metrics.prompt_tokens.inc(len(sequence.prompt))
        self._metrics.cached_prompt_tokens.inc(cached)

    def _continue(self, key: int, token: Token | Exception, *, is_last: bool) -> None:
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
        # The grammar has followed all tokens of the forward pass.
        is_complete = is_last and sequence.sampler.is_complete
        reason: FinishReason | None = "stop_sequence"
        if not is_stopped:
            reason = _finish_reason(sequence, token, is_complete=is_complete)
        if reason is None:
            self._scheduler.append_token(key)
        else:
            self._finish(key, reason)

    def _time(self, sequence: GeneratedSequence) -> None:
        now = time.monotonic()
        self._metrics.generated_tokens.inc()
        if sequence.is_bulk:  # for whose tokens nobody waits
            return
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
        bulk = self._scheduler.waiting_bulk
        self._metrics.waiting.set(self._scheduler.waiting - bulk)
        self._metrics.bulk_waiting.set(bulk)
        self._metrics.kv_used.set(self._scheduler.cached)


def _finish_reason(
    sequence: GeneratedSequence, token: Token, *, is_complete: bool
) -> FinishReason | None:
    """Return why a sequence ends with a token; None if it goes on."""
    if token.id in sequence.sampler.ends or is_complete:
        return "eos_token"
    return None if sequence.tokens_left > 0 else "length"
