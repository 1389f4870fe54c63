"""Which tokens of which sequence the model computes next: arithmetic over integers.

A sequence has *known* tokens (its prompt and its generated tokens). Some of these are *cached*: the
KV cache holds their keys and values. The others are computed in forward passes: many at a time
during prefill, one at a time during decode. When none is left, the forward pass has given the next
token.

- **Admission**: the known tokens of all running sequences stay within the KV cache (`KVLedger`). A
  sequence is admitted when there is room for its known tokens (`kv_room`). In layers with a window,
  the tokens within it count.
- **Order** is fair between requests (`fair_queue`), and that of arrival between requests of one
  sequence each. One rule is used twice: *a short sequence may overtake a long one, but not more
  than `MAX_OVERTAKES` times*. If the first in line has no room yet, later ones that have room may
  overtake it (`_admit`). Of the prompts in prefill, the one with the fewest tokens left goes next,
  so that a short prompt does not wait for a long one (`prefill`).
- **Preemption**: if the known tokens outgrow the KV cache, the sequence before which its request
  submitted most, and of several the last to arrive, returns to its place in line and is computed
  again later. The first to arrive is never preempted, so every sequence ends.
- **Bulk work** yields: while another request waits without room, bulk sequences are preempted for
  it, if that suffices (`_yield_room`); while one runs, they get what it costs little
  (`scheduled_sequence`).
- **Batches**: rows share a forward pass if their padding is cheap (`forward_passes`).
- **Restarts**: if a failed forward pass spoils what is cached of a sequence, it is computed again
  from its first token. The chunk that failed is then computed alone, so that no sequence makes
  others fail again; the second time, all of it is, so that it ends. One such pass is in each step.
- **Prefixes**: a sequence skips the tokens of its prompt that another one has computed
  (`prefix_cache`). Of several prompts that begin alike, one is computed and the others wait for
  its next chunk, unless it takes less than another forward pass to compute all of them.
- **Chunks** of prompts are smaller while somebody is in the middle of a reply, who waits for them.
- **Drafts**: guesses at the next tokens fill forward passes that have room for them (`drafts`).
- **States**: if the model keeps a state, a sequence that begins is never part of a decode pass, and
  one whose state can be continued by single tokens alone is, even if it has many tokens left. Else
  the first chunk of a prompt is the odd one, since only chunks that begin may be padded: all that
  continue have `SchedulerLimits.chunk` tokens, so they come in one shape and share forward passes.
  If prefixes are shared the last one is the odd one, so all prompts have states at the same places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter

from predictor.engine.generation.drafts import Drafts, NoDrafts, add_drafts
from predictor.engine.generation.forward_passes import Chunk, SchedulerLimits, batch
from predictor.engine.generation.kv_room import KVRoom
from predictor.engine.generation.prefill import select_prefill
from predictor.engine.generation.prefixes import NoPrefixes, Prefixes
from predictor.engine.generation.scheduled_sequence import BulkShare, ScheduledSequence
from predictor.engine.priority_queue import PriorityQueue

MAX_SET_ASIDE = 32
"""Requests without room that are passed over in a step: a bound of the work, whatever waits."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next step.

    Attributes:
        preempted: Sequences whose cached tokens are forgotten before the first forward pass.
        batches: Forward passes in order. A sequence is in one of them at most.
    """

    preempted: tuple[int, ...]
    batches: tuple[tuple[Chunk, ...], ...]


class Scheduler:
    """Plans the steps of all sequences. Its caller runs them and reports the results."""

    def __init__(
        self,
        limits: SchedulerLimits,
        prefixes: Prefixes | None = None,
        drafts: Drafts | None = None,
    ) -> None:
        """Begin with no sequence.

        Args:
            limits: The limits of the KV cache and of a forward pass.
            prefixes: The tokens that need not be computed again; None if nothing is shared.
            drafts: Guesses at the next tokens; None for none.
        """
        self._limits, self._prefixes = limits, prefixes or NoPrefixes()
        self._beside_replies = replace(limits, chunk=limits.reply_chunk or limits.chunk)
        self._drafts = drafts or NoDrafts()
        self._room = KVRoom(limits, self._prefixes)
        self._kv = self._room.ledger
        self._share = BulkShare()
        self._waiting: PriorityQueue[ScheduledSequence] = PriorityQueue()
        self._running: dict[int, ScheduledSequence] = {}
        self._cached = 0
        self._may_admit = False  # until a sequence arrives, leaves or shares, none gets room

    @property
    def waiting(self) -> int:
        """How many sequences wait to run."""
        return len(self._waiting)

    @property
    def waiting_bulk(self) -> int:
        """How many of them are bulk work."""
        return self._waiting.bulk

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
        return self._cached - self._prefixes.shared if self._limits.keeps_tokens else 0

    def add(
        self, key: int, tokens: int, request: int | None = None, *, is_bulk: bool = False
    ) -> None:
        """Put a sequence in line.

        Args:
            key: Its key.
            tokens: Tokens of its prompt.
            request: The request that it belongs to; None if it is the only one of its request.
            is_bulk: Whether it yields to all that are not.

        Raises:
            ValueError: It could never run.
        """
        if not 0 < tokens <= self._limits.kv_tokens:
            raise ValueError(f"{tokens} tokens never fit {self._limits.kv_tokens}")
        self._waiting.add(
            ScheduledSequence(key, key if request is None else request, tokens, is_bulk)
        )
        self._may_admit = True

    def remove(self, key: int) -> None:
        """Forget a sequence, wherever it is."""
        self._may_admit = True
        if key in self._running:
            self._release(key)
        else:
            self._waiting.remove(key)

    def mark_computed(self, chunk: Chunk) -> bool:
        """Note that a chunk is cached; return whether that gave the sequence's next token."""
        sequence = self._running[chunk.key]
        sequence.cached += chunk.count
        self._cached += chunk.count
        if chunk.count > 1:  # others may need no room for those; a reply rarely is their prompt
            self._may_admit |= bool(self._prefixes.blocks(chunk))
        return sequence.left == 0

    def append_token(self, key: int) -> None:
        """Note that a sequence continues with one more known token."""
        sequence = self._running[key]
        self._kv.reserve(1, after=sequence.tokens)
        sequence.tokens += 1
        sequence.is_replying = True

    def restart(self, chunk: Chunk) -> None:
        """Forget what is cached of a sequence, which a forward pass over a chunk lost."""
        sequence = self._running[chunk.key]
        whole = range(self._limits.kv_tokens)
        sequence.alone = whole if sequence.alone else range(chunk.start, chunk.end)
        self._prefixes.release(chunk.key)
        self._cached -= sequence.cached
        sequence.cached = 0

    def plan(self) -> Step:
        """Return the next step, and count the sequences that it admits as running."""
        preempted = self._preempt()
        if self._may_admit and not preempted:  # whose pages the caller has still to take back
            self._admit()
            if yielded := self._yield_room():
                return Step(yielded, ())
        prompts: list[tuple[ScheduledSequence, Chunk]] = []
        decode: list[Chunk] = []
        alone: list[Chunk] = []
        limits = self._prefill_limits()
        for sequence, most in self._share.participants(self._running.values(), limits):
            self._extend(sequence)
            chunk = sequence.next_chunk(limits, most)
            if not chunk.count:
                continue
            if chunk.start < sequence.alone.stop and sequence.alone.start < chunk.end:
                alone.append(chunk)
            elif sequence.is_decoding(self._limits):
                decode.append(chunk)
            else:
                prompts.append((sequence, chunk))
        decode = add_drafts(decode, self._drafts, self._limits, self._kv.room)
        shared = batch(select_prefill(prompts, self._prefixes, limits), decode, self._limits)
        return Step(preempted, (*shared, *((chunk,) for chunk in alone[:1])))

    def _release(self, key: int) -> ScheduledSequence:
        sequence = self._running.pop(key)
        self._kv.release(sequence.tokens)
        self._prefixes.release(key)
        self._cached -= sequence.cached
        sequence.cached = 0
        return sequence

    def _preempt(self) -> tuple[int, ...]:
        preempted = []
        while self._kv.is_overdrawn:
            oldest = min(self._running.values(), key=attrgetter("is_bulk", "arrival"))
            others = (sequence for sequence in self._running.values() if sequence is not oldest)
            last = max(others, key=attrgetter("place"))
            self._put_back(last)
            preempted.append(last.key)
        return tuple(preempted)

    def _put_back(self, sequence: ScheduledSequence) -> None:
        self._waiting.put_back(self._release(sequence.key))
        self._may_admit = True

    def _yield_room(self) -> tuple[int, ...]:
        """Preempt bulk work until one of others that wait has room, before any forward pass."""
        bulk = [sequence for sequence in self._running.values() if sequence.is_bulk]
        newcomer, preempted = self._find_newcomer() if bulk else None, []
        bulk.sort(key=attrgetter("place"))
        while bulk and newcomer is not None and not self._may_begin(newcomer):
            self._put_back(bulk[-1])
            preempted.append(bulk.pop().key)
        return tuple(preempted)

    def _find_newcomer(self) -> ScheduledSequence | None:
        """Return the first in line that may begin once all bulk work is preempted."""
        others = [sequence for sequence in self._running.values() if not sequence.is_bulk]
        is_full = len(others) >= self._limits.sequences
        if is_full or self._waiting.first is None or self._waiting.first.is_bulk:
            return None
        newcomer = self._first_in_line(lambda first: self._room.fits_beside(first, others))
        self._waiting.restore()
        return newcomer

    def _admit(self) -> None:
        while len(self._running) < self._limits.sequences:
            sequence = self._first_in_line(self._may_begin)
            if sequence is None:
                break
            self._waiting.take([sequence])
            self._running[sequence.key] = sequence
            self._kv.reserve(sequence.tokens)
            self._extend(sequence)
        self._waiting.restore()
        self._may_admit = False

    def _first_in_line(
        self, may_begin: Callable[[ScheduledSequence], bool]
    ) -> ScheduledSequence | None:
        """Return the first that may begin. Those before it are set aside, so many in a step."""
        while (sequence := self._waiting.first) is not None and not may_begin(sequence):
            if sequence.is_due:
                return None
            self._waiting.set_aside(sequence)
            if self._waiting.aside == MAX_SET_ASIDE:
                return None
        return sequence

    def _may_begin(self, sequence: ScheduledSequence) -> bool:
        running = len(self._running)
        return running < self._limits.sequences and self._room.fits(sequence, running)

    def _extend(self, sequence: ScheduledSequence) -> None:
        """Skip tokens that another sequence has computed, but for the last one."""
        if sequence.left > 1:
            cached = self._prefixes.extend(sequence.key, sequence.cached, sequence.tokens - 1)
            self._may_admit |= cached > sequence.cached  # pages for others are left
            self._cached += cached - sequence.cached
            sequence.cached = cached

    def _prefill_limits(self) -> SchedulerLimits:
        """Return the limits of prompts, narrower while somebody waits for the next token."""
        others = (each for each in self._running.values() if not each.is_bulk)
        return self._beside_replies if any(each.is_replying for each in others) else self._limits
