"""Measure KV cache, states and activations of a decoder by running it on the meta device.

On the meta device an operation creates tensors with shapes but no memory, so a forward pass of a
model with 176 billion parameters takes a third of a second. It yields the cache's true shapes
(`num_key_value_heads` is wrong by 71 times for Falcon-7B, and by 28 for multi-head latent
attention) and the most bytes that are alive at one time. If a model cannot run on meta, formulas
from its config are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import Cache, PreTrainedModel

from predictor.placement.demand import ATTENTION_PADDING_FACTOR
from predictor.private.mask_windows import noted_windows
from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.long_passes import MOST_OPERATIONS, extrapolate, peak_of, run_up_to
from predictor.profiling.meta_device import FAILURES
from predictor.profiling.meta_run import ForwardPass, MetaRun
from predictor.profiling.probe import SAMPLING_COPIES, Probe, by_formula
from predictor.profiling.sequence_cache import bytes_per_token, resized

_SHORT = 16
"""Most tokens of the forward pass that shows what is kept of a token."""

_FEW = 2
"""New tokens of rows that show what a row takes by itself. One may take the way of a reply's."""


def probe(
    model: PreTrainedModel,
    blocks: Sequence[nn.Module],
    *,
    max_model_len: int,
    chunk: int,
    rows: int = 1,
    largest_chunk: int = 0,
    deduplicator: BlockDeduplicator | None = None,
) -> Probe:
    """Return the cache per block and the activations of a model on the meta device.

    The engine keeps keys and values of whole sequences or of a window, and states of fixed size. A
    model that needs a cache of its own has the one that it makes measured at a quarter, half and
    full length: if that does not grow linearly (a sliding window is full), its size at full length
    counts for every length. So it is exact at `max_model_len` and never too small for shorter
    sequences.

    Args:
        model: The model, on the meta device.
        blocks: Its blocks.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of the forward pass whose activations are measured.
        rows: Most sequences of a forward pass.
        largest_chunk: Tokens up to which `chunk` may grow; 0 if it may not.
        deduplicator: Its blocks by kind, a few of which are executed; None executes every block.
    """
    shape = _Shape(max_model_len, chunk, rows, largest_chunk)
    logits = model.config.get_text_config().vocab_size * 4 * SAMPLING_COPIES
    for measure in (_measure_whole, _measure_own):
        try:
            run = MetaRun(model, blocks, deduplicator or BlockDeduplicator())
            measured = measure(run, shape)
        except FAILURES:
            continue
        if measured is not None:
            return replace(measured, activations=measured.activations + logits)
    return by_formula(model, len(blocks), max_model_len, chunk)


@dataclass(frozen=True, slots=True)
class _Shape:
    max_model_len: int
    chunk: int
    rows: int
    largest_chunk: int = 0


def _measure_whole(run: MetaRun, shape: _Shape) -> Probe | None:
    """Measure with a cache of sequences or windows, as the engine has it; None if there is none."""
    past = run.empty()
    if past is None:
        return None
    length = min(_SHORT, shape.max_model_len)
    short = run.run(1, length, past, by_module=True)
    per_token = [bytes_per_token(layer) for layer in short.cache.layers]
    per_token += [0] * (len(short.kept.by_block) - len(per_token))
    sizes = short.kept.bytes_by_block()
    fixed = [size - length * token for size, token in zip(sizes, per_token, strict=True)]
    kept = _Kept(short, tuple(per_token), _windows(run, shape, short))
    prefill = _prefill(run, shape, kept, keeps_state=any(fixed))
    decode, growth = _decode(run, shape, kept)
    worst = max(prefill, decode + shape.rows * max(fixed))
    worst, least = _prefill_rows(run, shape, worst) if any(fixed) else (worst, 1)
    gathered, grown = kept.gathered(shape)
    growth_by_chunk = 0 if any(fixed) else _growth_by_chunk(run, shape, kept, prefill)
    return Probe(
        kept.whole,
        tuple(fixed),
        worst + gathered,
        grown + ATTENTION_PADDING_FACTOR * growth,
        measured=True,
        least_row_tokens=least,
        kv_windowed=kept.windowed,
        window=max(kept.windows, default=0),
        per_chunk_token=growth_by_chunk,
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of a sequence.

    Attributes:
        short: A forward pass of a short one, after which all of its tokens are kept.
        per_token: Bytes of a token by block.
        windows: Tokens that are kept by layer of the cache, 0 for all; empty if none has a window.
    """

    short: ForwardPass
    per_token: tuple[int, ...]
    windows: tuple[int, ...]

    @property
    def whole(self) -> tuple[int, ...]:
        """Bytes of a token by block, in layers that keep all."""
        return tuple(0 if window else size for size, window in self._pairs)

    @property
    def windowed(self) -> tuple[int, ...]:
        """Bytes of a token by block, in layers that keep a window."""
        return tuple(size if window else 0 for size, window in self._pairs)

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(itertools.zip_longest(self.per_token, self.windows, fillvalue=0))

    def past(self, rows: int, tokens: int) -> Cache:
        """Return the cache of so many sequences of so many tokens."""
        return resized(self.short.cache, rows, tokens, self.windows)

    def gathered(self, shape: _Shape) -> tuple[int, int]:
        """Return the bytes that a layer gathers for attention, and their growth by cached token."""
        whole, windowed = max(self.whole), max(self.windowed)
        longest = ATTENTION_PADDING_FACTOR * shape.max_model_len
        most = shape.rows * max(self.windows, default=0) + shape.chunk
        size = max(whole * longest, windowed * min(longest, most))
        growing = max(whole, windowed if longest < most else 0)
        return size, ATTENTION_PADDING_FACTOR * growing


def _windows(run: MetaRun, shape: _Shape, short: ForwardPass) -> tuple[int, ...]:
    """Return the windows of layers; none if the model needs what has left them.

    The masks of some models do not heed the window of their config, and some have a mask of their
    own for all layers alike.
    """
    windows = tuple(run.windows(shape.max_model_len))
    if not any(windows):
        return ()
    try:
        with noted_windows() as masked:
            run.run(1, _FEW, resized(short.cache, 1, 2 * max(windows), windows))
    except FAILURES:
        return ()
    return windows if masked.issuperset(filter(None, windows)) else ()


def _prefill(run: MetaRun, shape: _Shape, kept: _Kept, *, keeps_state: bool) -> int:
    """Return the peak of the last chunk of the longest sequence."""
    past = shape.max_model_len - shape.chunk
    most = MOST_OPERATIONS + 2 * kept.short.operations
    passes = run_up_to(
        run,
        shape.chunk,
        lambda: kept.past(1, past) if past else run.empty(),
        most_operations=most,
        keeps_state=keeps_state,
        earlier=None if past else {min(_SHORT, shape.chunk): kept.short},
    )
    return peak_of(passes, shape.chunk)


def _growth_by_chunk(run: MetaRun, shape: _Shape, kept: _Kept, prefill: int) -> int:
    """Return the growth of the peak by token, from the chunk to the largest one.

    Peaks grow with the tokens, and the scores of attention with their square at most, so a line
    through two of them is above those between. The largest chunk may be a whole sequence, without
    tokens before it that a layer copies. So half of it is measured too, and the steeper line
    counts. A layer with a window gathers more, too.
    """
    growths = [0]
    for chunk in (shape.largest_chunk, shape.largest_chunk // 2):
        if chunk > shape.chunk:
            larger = replace(shape, chunk=chunk)
            peak = _prefill(run, larger, kept, keeps_state=False)
            gathered = kept.gathered(larger)[0] - kept.gathered(shape)[0]
            growths.append(-(-(max(0, peak - prefill) + gathered) // (chunk - shape.chunk)))
    return max(growths)


def _prefill_rows(run: MetaRun, shape: _Shape, worst: int) -> tuple[int, int]:
    """Return the peak if several rows begin, and the tokens that count for a row of a few tokens.

    Args:
        run: The model, which keeps a state.
        shape: The shape of forward passes.
        worst: The peak of other forward passes, of which a chunk of tokens may take all.
    """
    rows = min(shape.rows, shape.chunk // _FEW)
    if rows < 2:
        return worst, 1
    peak = run.run(rows, _FEW, run.empty()).peak
    tokens = max(1, shape.chunk * peak // (rows * worst))
    rows = min(rows, shape.chunk // tokens)
    longer = max(tokens, min(_SHORT, shape.chunk // rows))
    peak = run.run(rows, longer, run.empty()).peak if rows > 1 else 0
    return max(worst, peak), tokens


def _decode(run: MetaRun, shape: _Shape, kept: _Kept) -> tuple[int, int]:
    """Return the peak of one new token of each row, and its growth by tokens in the cache."""
    past = max(1, ATTENTION_PADDING_FACTOR * shape.max_model_len // shape.rows)
    few, many = (
        run.run(shape.rows, 1, kept.past(shape.rows, length)).peak for length in (past, 2 * past)
    )
    return few, max(0, many - few) // (shape.rows * past)


def _measure_own(run: MetaRun, shape: _Shape) -> Probe:
    """Measure with the cache that the model makes, which runs a whole sequence in one pass."""
    longest = shape.max_model_len
    short = run.run(1, min(_SHORT, longest), by_module=True)
    most = MOST_OPERATIONS + 2 * short.operations
    earlier = {min(_SHORT, longest): short}
    passes = run_up_to(run, longest, lambda: None, most_operations=most, earlier=earlier)
    if longest in passes:
        passes |= {n: run.run(1, n) for n in (max(1, longest // 4), max(1, longest // 2))}
    lengths = sorted(passes)
    sizes = [passes[n].kept.bytes_by_block() for n in lengths]
    lines = [_line(lengths, block, longest) for block in zip(*sizes, strict=True)]
    slopes, fixed = zip(*lines, strict=True)
    return Probe(slopes, fixed, peak_of(passes, longest), 0, measured=True)


def _line(lengths: Sequence[int], sizes: Sequence[int], longest: int) -> tuple[int, int]:
    """Return the bytes per token and the rest of the line through the last three sizes.

    If they are on no line, the size at the longest length is the rest.
    """
    (a, b, c), (x, y, z) = lengths[-3:], sizes[-3:]
    slope = (z - y) // max(1, c - b)
    if y - x == slope * (b - a) and z - y == slope * (c - b):
        return slope, z - slope * c
    return 0, z if c == longest else extrapolate(lengths, sizes, longest)
