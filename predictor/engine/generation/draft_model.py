"""The draft model: a small model that computes drafts, with a KV cache of its own.

It computes the tokens that the model would most likely give, greedily and for many rows at a time.
The first forward pass of a draft computes the known tokens that it lacks, which are few as a rule,
and each further one the token before. A prompt is caught up with first, a chunk in each step.

What it caches of a sequence are the tokens that it has computed, known ones and drafts. Once the
model has verified a draft, its first tokens up to the last that was right stay, but for the last
known token: the next draft begins with it. A sequence that has ended or was preempted has none. If
there is no room for a sequence, it has no draft.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from predictor.engine.generation.acceptance import AcceptanceRate
from predictor.engine.generation.drafts import NOTHING, Proposal
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner

_FIRST_RATE = 0.6
"""The rate of drafts that are right before any has been compared. Models of one family agree more
often. If none is ever right, the rate falls below what pays within some ten tokens."""

_FEW = 8
"""Tokens that a row may lack to share the first forward pass of a draft: a bucket of columns."""

_TIMED_PASSES = 3


@dataclass(frozen=True, slots=True)
class WantedDraft:
    """A draft to compute.

    Attributes:
        key: The sequence.
        tokens: Its known tokens.
        count: How many tokens to draft.
    """

    key: int
    tokens: Sequence[int]
    count: int


@dataclass(slots=True)
class _Row:
    """What is kept of a sequence: tokens, the first `known_tokens` of which are no drafts."""

    rate: AcceptanceRate = field(default_factory=lambda: AcceptanceRate(_FIRST_RATE))
    cached: int = 0
    known_tokens: int = 0
    draft: list[int] = field(default_factory=list)


class DraftModel:
    """Computes drafts of sequences, by their keys."""

    def __init__(
        self, runner: BatchRunner, *, tokens: int, chunk: int, max_length: int, vocabulary: int
    ) -> None:
        """Take a runner of the draft model.

        Args:
            runner: Runs its forward passes; nobody else does.
            tokens: Most tokens of a draft.
            chunk: Most tokens of a forward pass.
            max_length: Tokens of the longest sequence that it can continue.
            vocabulary: Token ids that it and the model have in common, from 0.
        """
        self._runner, self._tokens, self._chunk = runner, tokens, chunk
        self._max_length, self._vocabulary = max_length, vocabulary
        self._rows: dict[int, _Row] = {}

    def propose(self, key: int, tokens: Sequence[int], most: int) -> Proposal:
        """Propose a draft whose tokens are computed later.

        Args:
            key: The sequence.
            tokens: Its known tokens. They begin with those of earlier calls.
            most: Most tokens of the draft.
        """
        row = self._rows.setdefault(key, _Row(known_tokens=len(tokens)))
        self._learn(key, row, tokens)
        count = min(most, self._tokens, self._max_length - len(tokens))
        return Proposal(count, row.rate.value, is_model=True) if count > 0 else NOTHING

    def compute(self, wanted: Sequence[WantedDraft]) -> dict[int, list[int]]:
        """Return drafts by sequence. One that has far to catch up, or no room, has none yet.

        Lets the errors of the model pass. Then `release` all sequences.
        """
        fresh = self._with_room([each for each in wanted if not self._rows[each.key].draft])
        behind = [each for each in fresh if self._lacks_many(each)]
        if behind:
            self._catch_up(behind[0])
        ready = [each for each in fresh if not self._lacks_many(each)]
        size = max(1, self._chunk // _FEW)
        for first in range(0, len(ready), size):
            self._draft(ready[first : first + size])
        return {each.key: self._rows[each.key].draft[: each.count] for each in wanted}

    def time(self, rows: int) -> float:
        """Return the seconds of a forward pass of so many rows of a token, the least of a few."""
        chunks = [_chunk(-1 - row, 0, [0]) for row in range(rows)]
        taken = []
        for _ in range(_TIMED_PASSES):
            began = time.perf_counter()
            self._runner.run(chunks).argmax(dim=-1).tolist()
            taken.append(time.perf_counter() - began)
        for chunk in chunks:
            self._runner.release(chunk.key)
        return min(taken)

    def release(self, key: int) -> None:
        """Forget what is cached of a sequence, but not how often its drafts were right."""
        self._runner.release(key)
        if key in self._rows:
            self._rows[key].cached = 0

    def end(self, key: int) -> None:
        """Forget a sequence."""
        self.release(key)
        self._rows.pop(key, None)

    def release_all(self) -> None:
        """Forget what is cached of all sequences."""
        for key in self._rows:
            self.release(key)

    def _learn(self, key: int, row: _Row, tokens: Sequence[int]) -> None:
        """Compare the last draft with the tokens that came, and drop what was wrong."""
        added = tokens[row.known_tokens :]
        if not row.draft:
            row.rate.forget(_FIRST_RATE, len(added))
        elif added:
            row.rate.learn(row.draft, added)
            # The next draft begins with the last known token, so that one is not cached.
            right = min(_count_equal(row.draft, added), len(added) - 1)
            if row.cached > row.known_tokens + right:
                row.cached = row.known_tokens + right
                self._runner.truncate(key, row.cached)
        if added:
            row.draft = []
        row.known_tokens = len(tokens)

    def _with_room(self, wanted: Sequence[WantedDraft]) -> list[WantedDraft]:
        """Return those for which there are pages."""
        free, chosen = self._runner.cache.free_pages, []
        for each in wanted:
            pages = len(each.tokens) + each.count - self._runner.cache.pages.count(each.key)
            if pages <= free and max(each.tokens[self._rows[each.key].cached :]) < self._vocabulary:
                free -= pages
                chosen.append(each)
        return chosen

    def _lacks_many(self, wanted: WantedDraft) -> bool:
        return len(wanted.tokens) - self._rows[wanted.key].cached > _FEW

    def _catch_up(self, wanted: WantedDraft) -> None:
        """Compute a chunk of the tokens that a sequence lacks."""
        row = self._rows[wanted.key]
        end = min(len(wanted.tokens) - 1, row.cached + self._chunk)
        self._runner.run([_chunk(wanted.key, row.cached, wanted.tokens[row.cached : end])])
        row.cached = end

    def _draft(self, wanted: Sequence[WantedDraft]) -> None:
        """Compute the tokens of drafts, one of each in a forward pass."""
        drafts: dict[int, list[int]] = {each.key: [] for each in wanted}
        going = list(wanted)
        while going:
            chunks = [self._next_chunk(each, drafts[each.key]) for each in going]
            logits = self._runner.run(chunks)[:, : self._vocabulary]
            for chunk, token in zip(chunks, logits.argmax(dim=-1).tolist(), strict=True):
                self._rows[chunk.key].cached = chunk.end
                drafts[chunk.key].append(token)
            going = [each for each in going if len(drafts[each.key]) < each.count]
        for each in wanted:
            self._rows[each.key].draft = drafts[each.key]

    def _next_chunk(self, wanted: WantedDraft, draft: Sequence[int]) -> SequenceChunk:
        cached = self._rows[wanted.key].cached
        tokens = draft[-1:] if draft else wanted.tokens[cached:]
        return _chunk(wanted.key, cached, tokens)


def _chunk(key: int, start: int, tokens: Sequence[int]) -> SequenceChunk:
    return SequenceChunk(key, start, list(tokens))


def _count_equal(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many first tokens are equal."""
    pairs = zip(some, others, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(some), len(others)))
