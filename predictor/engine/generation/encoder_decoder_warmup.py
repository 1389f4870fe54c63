"""Find out how sequences of an encoder-decoder model share forward passes, by tests with a few.

Sequences are computed together and alone, joined to others that began before, and with several
known tokens of a reply at once. Each must give the logits that it gives alone, token by token.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.batchability import difference_in, distance, random_sequences
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import Runner
from predictor.engine.generation.sampling_params import as_source
from predictor.engine.warmup import check_once
from predictor.weights.store.warmup_cache import WarmupCache

logger = logging.getLogger(__name__)

_ALIKE = (9, 8)
"""Tokens of two sources that are encoded together."""


def open_encoder_decoder_runner(
    model: PreTrainedModel, device: torch.device, warmup_cache: WarmupCache
) -> tuple[EncoderDecoderRunner, str | None]:
    """Return the runner that suits a model with an encoder, and why it does not batch, if so.

    Args:
        model: The model, every part in its place.
        device: The device of its first part.
        warmup_cache: The results of an earlier start; those of this one are added.
    """
    runner = EncoderDecoderRunner(model, device=device)

    def check(_: bool) -> str | None:
        return check_encoder_decoder_batch_invariance(runner, model)

    _, reason = check_once("batches", check, (False,), warmup_cache)
    if reason is not None:
        runner = EncoderDecoderRunner(model, device=device, alone=True)
        run_two_tokens(runner, model)
    _set_pieces(runner, model, warmup_cache)
    if reason is None and runner.most_padding is not None:
        _set_joining(runner, model, warmup_cache)
    return runner, reason


def _set_pieces(
    runner: EncoderDecoderRunner, model: PreTrainedModel, warmup_cache: WarmupCache
) -> None:
    """Have a reply's known tokens computed one by one, if they are not the same at once."""

    def check(one_by_one: bool) -> str | None:
        return None if one_by_one else check_pieces(runner, model)

    one_by_one, _ = check_once("pieces", check, (False, True), warmup_cache)
    if one_by_one:
        runner.piece = 1


def _set_joining(
    runner: EncoderDecoderRunner, model: PreTrainedModel, warmup_cache: WarmupCache
) -> None:
    """Choose how sources that come later join; leave them apart if they get other logits."""

    def check(adds_column: bool) -> str | None:
        runner.adds_column = adds_column
        return check_joined_batches(runner, model)

    runner.adds_column, reason = check_once("joins", check, (False, True), warmup_cache)
    if reason is not None:
        runner.most_padding = None
        logger.info("Sources that come later run in passes of their own: %s", reason)


def check_encoder_decoder_batch_invariance(runner: Runner, model: PreTrainedModel) -> str | None:
    """Run two sources and two tokens of each reply together and alone; return how they differ.

    Args:
        runner: An `EncoderDecoderRunner`.
        model: Its model.
    """

    def difference() -> Iterator[float]:
        together = run_two_tokens(runner, model)
        alone = run_two_tokens(runner, model, together=False)
        yield max(distance(one, other) for one, other in zip(together, alone, strict=True))

    return difference_in(difference(), model.dtype)


def check_joined_batches(runner: EncoderDecoderRunner, model: PreTrainedModel) -> str | None:
    """Have a sequence join one that began before; return how they differ from each alone.

    Args:
        runner: Runs both.
        model: Its model.
    """

    def difference() -> Iterator[float]:
        together = _run_joined(runner, model, math.inf)
        alone = _run_joined(runner, model, None)
        yield max(distance(one, other) for one, other in zip(together, alone, strict=True))

    return difference_in(difference(), model.dtype)


def _run_joined(
    runner: EncoderDecoderRunner, model: PreTrainedModel, most_padding: float | None
) -> torch.Tensor:
    """Return the logits of three sequences that begin one after the other, in all steps of several.

    Three of them tell models that mix up rows and columns of padding, as NLLB's router does.
    """
    before, runner.most_padding = runner.most_padding, most_padding
    begun = [
        [SequenceChunk(-1 - i, 0, (*as_source(source), 0))]
        for i, source in enumerate(random_sequences(model, (*_ALIKE, _ALIKE[0]), seed=1))
    ]
    rows, logits = begun[0], []
    try:
        runner.run(rows)
        for later in ([], *begun[1:]):
            for _ in range(2):
                rows = _next(rows)
                logits.append(runner.run(rows))
            if later:
                runner.run(later)
                rows = [*rows, *later]
        rows = _next(rows)
        logits.append(runner.run(rows))
        return torch.cat(logits)
    finally:
        runner.most_padding = before
        for row in (*rows, *itertools.chain.from_iterable(begun)):
            runner.release(row.key)


def check_pieces(runner: EncoderDecoderRunner, model: PreTrainedModel) -> str | None:
    """Compute a reply's known tokens at once and one by one; return how they differ, or None.

    Args:
        runner: Runs both.
        model: Its model.
    """

    def difference() -> Iterator[float]:
        at_once, one_by_one = (_run_known(runner, model, piece) for piece in (runner.piece, 1))
        yield distance(at_once[0], one_by_one[0])

    return difference_in(difference(), model.dtype)


def _run_known(runner: EncoderDecoderRunner, model: PreTrainedModel, piece: int) -> torch.Tensor:
    """Return the logits after a reply of four tokens, of which so many share a forward pass."""
    before, runner.piece = runner.piece, piece
    source, reply = random_sequences(model, (_ALIKE[0], 3), seed=2)
    try:
        return runner.run([SequenceChunk(-1, 0, (*as_source(source), 0, *reply))])
    finally:
        runner.piece = before
        runner.release(-1)


def _next(rows: Sequence[SequenceChunk]) -> list[SequenceChunk]:
    return [SequenceChunk(row.key, row.end, (1,)) for row in rows]


def run_two_tokens(
    runner: Runner, model: PreTrainedModel, *, together: bool = True
) -> torch.Tensor:
    """Return the logits of two tokens after each of two sources, of shape (4, vocabulary).

    Args:
        runner: An `EncoderDecoderRunner`.
        model: Its model.
        together: Whether both sequences are in each forward pass.
    """
    sources = random_sequences(model, _ALIKE, seed=0)
    first = [SequenceChunk(-1 - i, 0, (*as_source(source), 0)) for i, source in enumerate(sources)]
    batches = [first, [SequenceChunk(row.key, row.end, (1,)) for row in first]]
    try:
        logits = [
            runner.run(rows) if together else torch.cat([runner.run([row]) for row in rows])
            for rows in batches
        ]
    finally:
        for row in first:
            runner.release(row.key)
    return torch.cat(logits)
