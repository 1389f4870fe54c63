"""Measure KV cache, states and activations of a decoder by running it on the meta device.

On the meta device an operation creates tensors with shapes but no memory, so a forward pass of a
model with 176 billion parameters takes a third of a second. It yields the cache's true shapes
(`num_key_value_heads` is wrong by 71 times for Falcon-7B, and by 28 for multi-head latent
attention) and the most bytes that are alive at one time. If a model cannot run on meta, formulas
from its config are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from predictor.placement.demand import ATTENTION_PADDING_FACTOR
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
    deduplicator: BlockDeduplicator | None = None,
) -> Probe:
    """Return the cache per block and the activations of a model on the meta device.

    The engine keeps keys and values of whole sequences, and states of fixed size. A model that
    needs a cache of its own has the one that it makes measured at a quarter, half and full length:
    if that does not grow linearly (a sliding window is full), its size at full length counts for
    every length. So it is exact at `max_model_len` and never too small for shorter sequences.

    Args:
        model: The model, on the meta device.
        blocks: Its blocks.
        max_model_len: Tokens of the longest sequence.
        chunk: Tokens of the forward pass whose activations are measured.
        rows: Most sequences of a forward pass.
        deduplicator: Its blocks by kind, a few of which are executed; None executes every block.
    """
    shape = _Shape(max_model_len, chunk, rows)
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


def _measure_whole(run: MetaRun, shape: _Shape) -> Probe | None:
    """Measure with a cache of whole sequences, as the engine has it; None if there is none."""
    past = run.empty()
    if past is None:
        return None
    length = min(_SHORT, shape.max_model_len)
    short = run.run(1, length, past)
    per_token = [bytes_per_token(layer) for layer in short.cache.layers]
    per_token += [0] * (len(short.kept.by_block) - len(per_token))
    sizes = short.kept.bytes_by_block()
    fixed = [size - length * token for size, token in zip(sizes, per_token, strict=True)]
    prefill = _prefill(run, shape, short)
    decode, growth = _decode(run, shape, short)
    gathered = max(per_token)
    worst = max(prefill, decode + shape.rows * max(fixed))
    worst, least = _prefill_rows(run, shape, worst) if any(fixed) else (worst, 1)
    worst += ATTENTION_PADDING_FACTOR * gathered * shape.max_model_len
    growth = ATTENTION_PADDING_FACTOR * (gathered + growth)
    return Probe(
        tuple(per_token), tuple(fixed), worst, growth, measured=True, least_row_tokens=least
    )


def _prefill(run: MetaRun, shape: _Shape, short: ForwardPass) -> int:
    """Return the peak of the last chunk of the longest sequence."""
    past = shape.max_model_len - shape.chunk
    most = MOST_OPERATIONS + 2 * short.operations
    passes = run_up_to(
        run,
        shape.chunk,
        lambda: resized(short.cache, 1, past) if past else run.empty(),
        most_operations=most,
    )
    return peak_of(passes, shape.chunk)


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


def _decode(run: MetaRun, shape: _Shape, short: ForwardPass) -> tuple[int, int]:
    """Return the peak of one new token of each row, and its growth by tokens in the cache."""
    past = max(1, ATTENTION_PADDING_FACTOR * shape.max_model_len // shape.rows)
    few, many = (
        run.run(shape.rows, 1, resized(short.cache, shape.rows, length)).peak
        for length in (past, 2 * past)
    )
    return few, max(0, many - few) // (shape.rows * past)


def _measure_own(run: MetaRun, shape: _Shape) -> Probe:
    """Measure with the cache that the model makes, which runs a whole sequence in one pass."""
    longest = shape.max_model_len
    short = run.run(1, min(_SHORT, longest))
    most = MOST_OPERATIONS + 2 * short.operations
    passes = run_up_to(run, longest, lambda: None, most_operations=most)
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
