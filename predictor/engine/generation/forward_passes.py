"""Which rows share a forward pass: arithmetic over the lengths of their chunks.

One forward pass over the weights takes as long as computing `SchedulerLimits.breakeven_tokens`
tokens (measured), and its rows are padded to the longest. Rows share a forward pass if the padding
costs less than another forward pass. Padding also widens attention: rows times the longest row stay
within `SchedulerLimits.max_attention_tokens`.

No padding may come between a state and the tokens that continue it. If the model keeps a state,
rows that begin share forward passes with each other alone, and rows that continue with those of as
many new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from predictor.shape_buckets import bucket_context, bucket_new_tokens


@dataclass(frozen=True, slots=True)
class DraftModelCost:
    """The time of a forward pass of the draft model, in tokens that the model computes meanwhile.

    Attributes:
        one: Of one row of one token.
        more: Of each further row.
    """

    one: float = 0.0
    more: float = 0.0

    def of(self, rows: int) -> float:
        """Return the time of a forward pass of so many rows."""
        return self.one + self.more * (rows - 1) if rows else 0.0


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
        keeps_tokens: Whether the model keeps keys and values of tokens. If not, `kv_tokens` bounds
            each sequence by itself, and a forward pass reads its new tokens alone.
        keeps_state: Whether the model keeps a state of each sequence.
        one_by_one: Whether a sequence that has begun is continued one token at a time.
        least_row_tokens: Tokens of prefill that take as much memory as a row of a few tokens.
        window: Tokens of one sequence that layers with a window keep; 0 if all layers keep all.
        window_tokens: Tokens that sequences may cache in layers with a window.
        draft_tokens: Most draft tokens of one sequence in a forward pass; 0 for none.
        reply_chunk: The same as `chunk` while somebody is in the middle of a reply; 0 for as many.
        lookup_tokens: Most of those that lookup or a grammar drafts; None for as many.
        tries_drafts: Whether it is measured in place if drafts pay, see `draft_trials`.
        draft_model_cost: The time of a forward pass of the draft model, if there is one.
        shares_states: Whether chunks of prompts end at multiples of `chunk`, where states are kept.
    """

    kv_tokens: int
    sequences: int
    chunk: int
    breakeven_tokens: int = 0
    max_attention_tokens: int = 0
    bucket_shapes: bool = False
    keeps_tokens: bool = True
    keeps_state: bool = False
    one_by_one: bool = False
    least_row_tokens: int = 1
    window: int = 0
    window_tokens: int = 0
    draft_tokens: int = 0
    reply_chunk: int = 0
    lookup_tokens: int | None = None
    tries_drafts: bool = False
    draft_model_cost: DraftModelCost = DraftModelCost()
    shares_states: bool = False

    @property
    def keeps_every_position(self) -> bool:
        """Whether all layers keep keys and values of all tokens, see `kv_cache`."""
        return not self.keeps_state and not self.window

    def computed_tokens(self, rows: int, longest: int) -> int:
        """Return the tokens that a forward pass computes, padding included.

        Args:
            rows: How many sequences it has.
            longest: New tokens of the row that has most.
        """
        return rows * (bucket_new_tokens(longest) if self.bucket_shapes else longest)

    def can_prefill(self, rows: int, longest: int) -> bool:
        """Return whether a forward pass that prefills so many rows takes no more than a chunk.

        Args:
            rows: How many sequences it has.
            longest: New tokens of the row that has most.
        """
        steps = -(-self.computed_tokens(1, longest) // self.least_row_tokens)
        return rows * steps * self.least_row_tokens <= self.chunk

    def can_draft(self, rows: int, drafts: int) -> bool:
        """Return whether the logits of a forward pass with drafts are within the plan.

        Every row has as many of them as the row with most drafts. As many are planned as there may
        be sequences, or as one sequence needs.

        Args:
            rows: How many sequences it has.
            drafts: Drafts of the row that has most.
        """
        return self.computed_tokens(rows, 1 + drafts) <= max(self.sequences, 1 + self.draft_tokens)

    def can_attend(self, rows: int, longest: int) -> bool:
        """Return whether a forward pass may read so many rows.

        Args:
            rows: How many sequences it has.
            longest: Cached and new tokens of the longest row.
        """
        if not self.keeps_tokens:
            return True
        width = bucket_context(longest) if self.bucket_shapes else longest
        return rows * width <= max(self.max_attention_tokens, self.kv_tokens)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, computed in one forward pass.

    Attributes:
        key: The sequence.
        start: The position of the first token, which is how many tokens are cached before.
        count: How many tokens, drafts among them.
        drafts: How many of the last ones are drafts.
    """

    key: int
    start: int
    count: int
    drafts: int = 0

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + self.count

    @property
    def known_part(self) -> Chunk:
        """The chunk without its drafts."""
        return Chunk(self.key, self.start, self.count - self.drafts)

    def with_drafts(self, most: int) -> Chunk:
        """Return the chunk with so many drafts at most."""
        drafts = min(self.drafts, most)
        return Chunk(self.key, self.start, self.count - self.drafts + drafts, drafts)

    @property
    def following(self) -> Chunk:
        """The chunk of the one token that comes after it."""
        return Chunk(self.key, self.end, 1)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The shape of a forward pass: its rows, and the largest count and end of a chunk in it.

    Attributes:
        rows: How many rows it has.
        count: New tokens of the row that has most.
        end: Cached and new tokens of the longest row.
        strides: The counts of the rows that continue a sequence, and 0 for those that begin.
    """

    rows: int
    count: int
    end: int
    strides: frozenset[int]

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> _Shape:
        count = max(chunk.count for chunk in chunks)
        strides = frozenset(chunk.count if chunk.start else 0 for chunk in chunks)
        return cls(len(chunks), count, max(chunk.end for chunk in chunks), strides)

    def joined(self, other: _Shape) -> _Shape:
        rows, count = self.rows + other.rows, max(self.count, other.count)
        return _Shape(rows, count, max(self.end, other.end), self.strides | other.strides)


def choose_company(chunks: Sequence[Chunk], limits: SchedulerLimits) -> list[Chunk]:
    """Return the first of the chunks, and those that may share its forward pass, in order."""
    company: list[Chunk] = []
    shape: _Shape | None = None
    for chunk in chunks:
        alone = _Shape.of([chunk])
        if shape is None or _may_share(shape, alone, limits):
            company.append(chunk)
            shape = alone if shape is None else shape.joined(alone)
    return company


def batch(
    prefill: Sequence[Chunk], decode: Sequence[Chunk], limits: SchedulerLimits
) -> tuple[tuple[Chunk, ...], ...]:
    """Return the forward passes of chunks of prompts, which share one, and of single tokens.

    Single tokens may have drafts: no more in company of prompts than there is room for logits.
    """
    if prefill and decode:
        joining = _cut_drafts(decode, len(prefill) + len(decode), limits)
        if _may_share(_Shape.of(prefill), _Shape.of(joining), limits):
            return ((*prefill, *joining),)
    return (*([tuple(prefill)] if prefill else []), *_batch_by_length(decode, limits))


def _cut_drafts(decode: Sequence[Chunk], rows: int, limits: SchedulerLimits) -> list[Chunk]:
    """Return the chunks with as many drafts as a forward pass of so many rows may have."""
    most = max(chunk.drafts for chunk in decode)
    while most and not limits.can_draft(rows, most):
        most -= 1
    return [chunk.with_drafts(most) for chunk in decode]


def _may_share(some: _Shape, others: _Shape, limits: SchedulerLimits) -> bool:
    """Whether the padding of one forward pass costs less than a second one would."""
    shape = some.joined(others)
    if limits.keeps_state and len(shape.strides) > 1:
        return False
    together = limits.computed_tokens(shape.rows, shape.count)
    apart = sum(limits.computed_tokens(part.rows, part.count) for part in (some, others))
    return (
        limits.can_prefill(shape.rows, shape.count)
        and together - apart <= limits.breakeven_tokens
        and limits.can_attend(shape.rows, shape.end)
    )


def _batch_by_length(decode: Sequence[Chunk], limits: SchedulerLimits) -> list[tuple[Chunk, ...]]:
    """As few forward passes as stay within `SchedulerLimits.max_attention_tokens`."""
    batches: list[list[Chunk]] = []
    for chunk in sorted(decode, key=lambda chunk: -chunk.end):
        last = batches[-1] if batches else None
        if last is not None and limits.can_attend(len(last) + 1, last[0].end):
            last.append(chunk)
        else:
            batches.append([chunk])
    return [tuple(rows) for rows in batches]
