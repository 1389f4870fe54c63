"""Which tokens of which sequence the model computes next: arithmetic over integers.

A sequence has *known* tokens (its prompt and its generated tokens). Some of these are *cached*: the
KV cache holds their keys and values. The others are computed in forward passes: many at a time
during prefill, one at a time during decode. When none is left, the forward pass has given the next
token.

- **Admission**: the known tokens of all running sequences stay within the KV cache (`KVLedger`). A
  sequence is admitted when there is room for its known tokens, and besides for `LOOKAHEAD` more
  tokens of each running sequence, so that none is preempted at once.
- **Order** is that of arrival, with one rule of fairness that is used twice: *a short sequence may
  overtake a long one, but not more than `MAX_OVERTAKES` times*. If the first in line has no room
  yet, later ones that have room may overtake it (`_admit`). Of the prompts in prefill, the one with
  the fewest tokens left goes next, so that a short prompt does not wait for a long one
  (`_select_prefill`).
- **Preemption**: if the known tokens outgrow the KV cache, the sequence that arrived last returns
  to its place in line and is computed again later. The first to arrive is never preempted, so every
  sequence ends.
- **Batches**: one forward pass over the weights takes as long as computing
  `SchedulerLimits.breakeven_tokens` tokens (measured), and its rows are padded to the longest. Rows
  share a forward pass if the padding costs less than another forward pass. Padding also widens
  attention: rows times the longest row stay within `SchedulerLimits.max_attention_tokens`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from predictor.engine.generation.kv_accounting import KVLedger
from predictor.engine.shape_buckets import bucket_context, bucket_new_tokens

LOOKAHEAD = 16
"""Tokens of room for each running sequence that a newcomer must leave."""

MAX_OVERTAKES = 8
"""How often a sequence is overtaken by shorter ones before it goes next."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The limits of the KV cache and of a forward pass.

    Attributes:
        kv_tokens: Tokens that sequences may cache; no sequence ever needs more.
        sequences: Most sequences that run at one time.
        chunk: Most tokens of a forward pass that prefills, padding included.
        breakeven_tokens: Tokens that take as long to compute as one forward pass over the weights.
        max_attention_tokens: Most cached tokens that a forward pass reads, padding included; at
            least `kv_tokens`.
        bucket_shapes: Whether rows are padded to one of a few lengths, see `shape_buckets`.
    """

    kv_tokens: int
    sequences: int
    chunk: int
    breakeven_tokens: int = 0
    max_attention_tokens: int = 0
    bucket_shapes: bool = False

    def computed_tokens(self, rows: int, longest: int) -> int:
        """Return the tokens that a forward pass computes, padding included.

        Args:
            rows: How many sequences it has.
            longest: New tokens of the row that has most.
        """
        return rows * (bucket_new_tokens(longest) if self.bucket_shapes else longest)

    def can_attend(self, rows: int, longest: int) -> bool:
        """Return whether a forward pass may read so many rows.

        Args:
            rows: How many sequences it has.
            longest: Cached and new tokens of the longest row.
        """
        width = bucket_context(longest) if self.bucket_shapes else longest
        return rows * width <= max(self.max_attention_tokens, self.kv_tokens)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, computed in one forward pass.

    Attributes:
        key: The sequence.
        start: The position of the first token, which is how many tokens are cached before.
        count: How many tokens.
    """

    key: int
    start: int
    count: int

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Step:
    """The next step.

    Attributes:
        preempted: Sequences whose cached tokens are forgotten before the first forward pass.
        batches: Forward passes in order. A sequence is in one of them at most.
    """

    preempted: tuple[int, ...]
    batches: tuple[tuple[Chunk, ...], ...]


@dataclass(slots=True, order=True)
class _Sequence:
    """A sequence, ordered by arrival."""

    arrival: int
    key: int = field(compare=False)
    known_tokens: int = field(compare=False)
    cached: int = field(default=0, compare=False)
    overtaken: int = field(default=0, compare=False)

    @property
    def left(self) -> int:
        return self.known_tokens - self.cached

    def next_chunk(self, limit: int) -> Chunk:
        return Chunk(self.key, self.cached, min(self.left, limit))


class Scheduler:
    """Plans the steps of all sequences. Its caller runs them and reports the results."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._kv = KVLedger(limits.kv_tokens)
        self._waiting: list[_Sequence] = []
        self._running: dict[int, _Sequence] = {}
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """How many sequences wait to run."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many sequences run."""
        return len(self._running)

    @property
    def running_keys(self) -> frozenset[int]:
        """The sequences that run."""
        return frozenset(self._running)

    @property
    def cached(self) -> int:
        """Tokens in the KV cache."""
        return sum(sequence.cached for sequence in self._running.values())

    def add(self, key: int, tokens: int) -> None:
        """Put a sequence with so many prompt tokens at the end of the line.

        Raises:
            ValueError: It could never run.
        """
        if not 0 < tokens <= self._limits.kv_tokens:
            raise ValueError(f"{tokens} tokens never fit {self._limits.kv_tokens}")
        self._arrivals += 1
        self._waiting.append(_Sequence(self._arrivals, key, tokens))

    def remove(self, key: int) -> None:
        """Forget a sequence, wherever it is."""
        sequence = self._running.pop(key, None)
        if sequence is not None:
            self._kv.release(sequence.known_tokens)
        else:
            self._waiting = [sequence for sequence in self._waiting if sequence.key != key]

    def mark_computed(self, chunk: Chunk) -> bool:
        """Note that a chunk is cached; return whether that gave the sequence's next token."""
        sequence = self._running[chunk.key]
        sequence.cached += chunk.count
        return sequence.left == 0

    def append_token(self, key: int) -> None:
        """Note that a sequence continues with one more known token."""
        self._running[key].known_tokens += 1
        self._kv.reserve(1)

    def plan(self) -> Step:
        """Return the next step, and count the sequences that it admits as running."""
        preempted = self._preempt()
        self._admit()
        running = self._running.values()
        prefill = self._select_prefill([sequence for sequence in running if sequence.left > 1])
        decode = [sequence.next_chunk(1) for sequence in running if sequence.left == 1]
        return Step(preempted, self._batch(prefill, decode))

    def _preempt(self) -> tuple[int, ...]:
        preempted = []
        while self._kv.is_overdrawn:
            last = max(self._running.values())
            self.remove(last.key)
            last.cached = 0
            bisect.insort(self._waiting, last)
            preempted.append(last.key)
        return tuple(preempted)

    def _admit(self) -> None:
        overtaken: list[_Sequence] = []
        for sequence in self._waiting:
            if len(self._running) >= self._limits.sequences:
                break
            if self._has_room(sequence):
                self._running[sequence.key] = sequence
                self._kv.reserve(sequence.known_tokens)
                _count_overtake(overtaken)
                if any(other.overtaken >= MAX_OVERTAKES for other in overtaken):
                    break
            elif sequence.overtaken >= MAX_OVERTAKES:
                break
            else:
                overtaken.append(sequence)
        if self._running:
            self._waiting = [s for s in self._waiting if s.key not in self._running]

    def _has_room(self, sequence: _Sequence) -> bool:
        return self._kv.has_room(sequence.known_tokens + LOOKAHEAD * len(self._running))

    def _select_prefill(self, prompts: list[_Sequence]) -> list[Chunk]:
        """Choose the chunks of prompts to compute next: the first by priority, and cheap company.

        A chunk is all that is left of a prompt, up to `SchedulerLimits.chunk` tokens. Further
        prompts join, in order of priority, if their padding costs less than another forward pass.
        """
        prompts.sort(key=_priority)
        chunks: list[Chunk] = []
        for sequence in prompts:
            chunk = sequence.next_chunk(self._limits.chunk)
            if not chunks or self._share_a_pass(chunks, [chunk]):
                chunks.append(chunk)
        selected = {chunk.key for chunk in chunks}
        latest = max((self._running[key].arrival for key in selected), default=0)
        _count_overtake(s for s in prompts if s.key not in selected and s.arrival < latest)
        for key in selected:
            self._running[key].overtaken = 0
        return chunks

    def _batch(self, prefill: list[Chunk], decode: list[Chunk]) -> tuple[tuple[Chunk, ...], ...]:
        if prefill and decode and self._share_a_pass(prefill, decode):
            return ((*prefill, *decode),)
        return (*([tuple(prefill)] if prefill else []), *self._batch_by_length(decode))

    def _share_a_pass(self, some: Sequence[Chunk], others: Sequence[Chunk]) -> bool:
        """Whether the padding of one forward pass costs less than a second one would."""
        together = self._computed_tokens([*some, *others])
        apart = self._computed_tokens(some) + self._computed_tokens(others)
        longest = max(chunk.end for chunk in (*some, *others))
        return (
            together <= self._limits.chunk
            and together - apart <= self._limits.breakeven_tokens
            and self._limits.can_attend(len(some) + len(others), longest)
        )

    def _computed_tokens(self, chunks: Sequence[Chunk]) -> int:
        return self._limits.computed_tokens(len(chunks), max(chunk.count for chunk in chunks))

    def _batch_by_length(self, decode: list[Chunk]) -> list[tuple[Chunk, ...]]:
        """As few forward passes as stay within `SchedulerLimits.max_attention_tokens`."""
        batches: list[list[Chunk]] = []
        for chunk in sorted(decode, key=lambda chunk: -chunk.end):
            last = batches[-1] if batches else None
            if last is not None and self._limits.can_attend(len(last) + 1, last[0].end):
                last.append(chunk)
            else:
                batches.append([chunk])
        return [tuple(rows) for rows in batches]


def _priority(sequence: _Sequence) -> tuple[int, int, int]:
    """First those that were overtaken too often, by arrival; then the shortest."""
    if sequence.overtaken >= MAX_OVERTAKES:
        return (0, sequence.arrival, 0)
    return (1, sequence.left, sequence.arrival)


def _count_overtake(sequences: Iterable[_Sequence]) -> None:
    for sequence in sequences:
        sequence.overtaken += 1
