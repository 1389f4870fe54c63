"""Which tokens of which sequence the model computes next: arithmetic over integers.

A sequence has *known* tokens (its prompt and what was generated) and, of these, *cached* ones,
whose keys and values the KV cache holds. Those left are fed in passes: many at a time while a
prompt is read (prefill), one at a time after (decode). When none is left, the pass gave the next
token.

- **Admission**: a sequence runs while its known tokens are within the KV budget together with
  those of all others that run. It is admitted when there is room for its known tokens and for
  `LOOKAHEAD` more tokens of everyone who runs, so that it does not have to go at once.
- **Order** is that of arrival, with one rule of fairness, used twice: *a short one may pass a long
  one, but not more than `MAX_OVERTAKES` times*. So whoever is first in line but has no room yet
  may be passed by later ones that have; and of the prompts that are being read, the one with fewest
  tokens left goes next, so that a short prompt does not wait for a long one.
- **Preemption**: where the known tokens outgrow the budget, the last to have arrived goes back to
  its place in the line and is computed again later. The first to have arrived is never preempted,
  so everything ends.
- **Passes**: one pass over the weights takes as long as computing `Limits.breakeven_tokens` tokens
  (measured), and rows of a pass are padded to the longest. So rows share a pass where the padding
  costs less than a pass of their own would. Padding also widens what attention reads: rows times
  the longest row stay within `Limits.width`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from predictor.engine.shape_buckets import bucket_context, bucket_new_tokens

LOOKAHEAD = 16
"""Tokens of room for everyone who runs that a newcomer must leave."""

MAX_OVERTAKES = 8
"""How often a sequence is passed by shorter ones before it goes next."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What passes and the KV cache are held to.

    Attributes:
        kv_tokens: Tokens that the KV cache holds; no sequence ever needs more.
        sequences: Most sequences that run at one time.
        chunk: Most tokens of a pass that reads prompts, padding included.
        breakeven_tokens: Tokens whose computation takes as long as one pass over the weights.
        width: Cached tokens that a pass may read, padding included; at least `kv_tokens`.
        bucket_shapes: Whether rows are padded a little more, see `shapes`.
    """

    kv_tokens: int
    sequences: int
    chunk: int
    breakeven_tokens: int = 0
    width: int = 0
    bucket_shapes: bool = False

    def computed(self, rows: int, most: int) -> int:
        """Returns the tokens that a pass computes, padding included.

        Args:
            rows: How many sequences it is of.
            most: New tokens of the one that has most.
        """
        return rows * (bucket_new_tokens(most) if self.bucket_shapes else most)

    def fits(self, rows: int, longest: int) -> bool:
        """Returns whether a pass may read so many sequences, the longest of so many tokens."""
        read = rows * (bucket_context(longest) if self.bucket_shapes else longest)
        return read <= max(self.width, self.kv_tokens)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, computed in one pass.

    Attributes:
        key: The sequence.
        start: The first token's position, which is how many are cached before.
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
    """What happens next.

    Attributes:
        preempted: Sequences whose cached tokens are to be forgotten, before anything else.
        passes: Passes in order; in a step every sequence is in one at most.
    """

    preempted: tuple[int, ...]
    passes: tuple[tuple[Chunk, ...], ...]


@dataclass(slots=True, order=True)
class _Sequence:
    """Ordered by arrival."""

    arrival: int
    key: int = field(compare=False)
    known: int = field(compare=False)
    cached: int = field(default=0, compare=False)
    passed: int = field(default=0, compare=False)

    @property
    def left(self) -> int:
        return self.known - self.cached

    def chunk(self, most: int) -> Chunk:
        return Chunk(self.key, self.cached, min(self.left, most))


class Scheduler:
    """Keeps the books of all sequences; whoever runs the passes tells what became of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: list[_Sequence] = []
        self._running: dict[int, _Sequence] = {}
        self._held = 0  # known tokens of all that run
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
    def cached(self) -> int:
        """Tokens in the KV cache."""
        return sum(sequence.cached for sequence in self._running.values())

    def add(self, key: int, tokens: int) -> None:
        """Puts a sequence with so many prompt tokens at the end of the line.

        Raises:
            ValueError: It could never run.
        """
        if not 0 < tokens <= self._limits.kv_tokens:
            raise ValueError(f"{tokens} tokens never fit {self._limits.kv_tokens}")
        self._arrivals += 1
        self._waiting.append(_Sequence(self._arrivals, key, tokens))

    def remove(self, key: int) -> None:
        """Forgets a sequence, wherever it stands."""
        found = self._running.pop(key, None)
        if found is not None:
            self._held -= found.known
        else:
            self._waiting = [sequence for sequence in self._waiting if sequence.key != key]

    def fed(self, chunk: Chunk) -> bool:
        """Notes that a chunk was computed; returns whether that gave the sequence's next token."""
        sequence = self._running[chunk.key]
        sequence.cached += chunk.count
        return sequence.left == 0

    def grew(self, key: int) -> None:
        """Notes that a sequence goes on with one more known token."""
        self._running[key].known += 1
        self._held += 1

    def plan(self) -> Step:
        """Returns the next step, and counts everyone as running that it makes run."""
        preempted = self._make_room()
        self._admit()
        running = self._running.values()
        reading = self._reading([sequence for sequence in running if sequence.left > 1])
        decoding = [sequence.chunk(1) for sequence in running if sequence.left == 1]
        return Step(preempted, self._passes(reading, decoding))

    def _make_room(self) -> tuple[int, ...]:
        preempted = []
        while self._held > self._limits.kv_tokens:
            last = max(self._running.values())
            self.remove(last.key)
            last.cached = 0
            bisect.insort(self._waiting, last)
            preempted.append(last.key)
        return tuple(preempted)

    def _admit(self) -> None:
        passed: list[_Sequence] = []
        for sequence in self._waiting:
            if len(self._running) >= self._limits.sequences:
                break
            if self._has_room(sequence):
                self._running[sequence.key] = sequence
                self._held += sequence.known
                _pass_by(passed)
                if any(other.passed >= MAX_OVERTAKES for other in passed):
                    break
            elif sequence.passed >= MAX_OVERTAKES:
                break
            else:
                passed.append(sequence)
        if self._running:
            self._waiting = [s for s in self._waiting if s.key not in self._running]

    def _has_room(self, sequence: _Sequence) -> bool:
        ahead = LOOKAHEAD * len(self._running)
        return self._held + sequence.known + ahead <= self._limits.kv_tokens

    def _reading(self, prompts: list[_Sequence]) -> list[Chunk]:
        """The prompts to read next: the shortest, and those that cost little beside it."""
        prompts.sort(key=_by_turn)
        chosen: list[Chunk] = []
        for sequence in prompts:
            chunk = sequence.chunk(self._limits.chunk)
            if not chosen or self._share_a_pass(chosen, [chunk]):
                chosen.append(chunk)
        keys = {chunk.key for chunk in chosen}
        latest = max((self._running[key].arrival for key in keys), default=0)
        _pass_by(s for s in prompts if s.key not in keys and s.arrival < latest)
        for key in keys:
            self._running[key].passed = 0
        return chosen

    def _passes(self, reading: list[Chunk], decoding: list[Chunk]) -> tuple[tuple[Chunk, ...], ...]:
        if reading and decoding and self._share_a_pass(reading, decoding):
            return ((*reading, *decoding),)
        return (*([tuple(reading)] if reading else []), *self._by_length(decoding))

    def _share_a_pass(self, some: Sequence[Chunk], others: Sequence[Chunk]) -> bool:
        """Whether the padding of one pass costs less than a second pass would."""
        together = self._computed([*some, *others])
        apart = self._computed(some) + self._computed(others)
        longest = max(chunk.end for chunk in (*some, *others))
        return (
            together <= self._limits.chunk
            and together - apart <= self._limits.breakeven_tokens
            and self._limits.fits(len(some) + len(others), longest)
        )

    def _computed(self, chunks: Sequence[Chunk]) -> int:
        return self._limits.computed(len(chunks), max(chunk.count for chunk in chunks))

    def _by_length(self, decoding: list[Chunk]) -> list[tuple[Chunk, ...]]:
        """As few passes as keep rows times the longest row within `Limits.width`."""
        passes: list[list[Chunk]] = []
        for chunk in sorted(decoding, key=lambda chunk: -chunk.end):
            last = passes[-1] if passes else None
            if last is not None and self._limits.fits(len(last) + 1, last[0].end):
                last.append(chunk)
            else:
                passes.append([chunk])
        return [tuple(rows) for rows in passes]


def _by_turn(sequence: _Sequence) -> tuple[int, int, int]:
    """Those whose patience has ended first, in order of arrival; then the shortest."""
    if sequence.passed >= MAX_OVERTAKES:
        return (0, sequence.arrival, 0)
    return (1, sequence.left, sequence.arrival)


def _pass_by(sequences: Iterable[_Sequence]) -> None:
    for sequence in sequences:
        sequence.passed += 1
