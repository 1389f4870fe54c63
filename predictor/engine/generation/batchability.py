"""Whether a model can be batched: first by its config, then by a test with two sequences.

A model that cannot be batched is served one sequence at a time. A config may promise too much, so
the promise is tested: two sequences of different lengths are computed in one batch, one of them in
chunks, and must give the logits that each gives alone. Wrong masks or positions change logits a
lot; rounding, which differs with the batch's size, changes them a little.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.kv_cache import SequenceChunk
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.engine.generation.sampling_params import as_source
from predictor.private.transformers import cache_layer_types, is_stateful
from predictor.profiling.decoder_probe import TOKEN_CACHE_TYPES

_TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
_HALF_TOLERANCE = 0.15
"""Most difference, as a fraction of the spread of the logits. Rounding changes about 1e-6 of it in
float32, and 0.02 to 0.06 in bfloat16 over 22 blocks of random weights. Another sequence's tokens in
sight change a third and more. An error smaller than rounding cannot be seen this way: the
architectures that batch are tested in float32."""

_TRIES = 3
"""Pairs of sequences. A mixture of experts may choose others if two are nearly as good."""

_LENGTHS = (9, 4)
_ALIKE = (9, 8)
"""Tokens of two sources that are encoded together."""

_SPLITS = (5, 3)
"""How many tokens of each sequence are computed in the first forward pass."""


def count_layers(model: PreTrainedModel) -> int:
    """Return how many layers a cache of the model may have."""
    return len(cache_layer_types(model))


def count_vocabulary(model: PreTrainedModel) -> int:
    """Return how many token ids the model knows."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.num_embeddings)


def unbatchable_reason(model: PreTrainedModel) -> str | None:
    """Return why the model cannot be batched, by its class and config; None if it can."""
    accepted = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "attention_mask"):
        if name not in accepted:
            return f"its forward pass takes no {name}"
    if is_stateful(model):
        return "it keeps a state that cannot be shared"
    kinds = set(cache_layer_types(model)) - TOKEN_CACHE_TYPES
    return f"it has layers of the kind {sorted(kinds)[0]}" if kinds else None


def check_batch_invariance(
    runner: BatchRunner, model: PreTrainedModel, device: torch.device
) -> str | None:
    """Run two sequences together and alone; return how they differ, or None if they do not."""
    tries = (_difference(runner, model, device, seed=attempt) for attempt in range(_TRIES))
    return _reason(tries, model.dtype)


def _reason(differences: Iterable[float], dtype: torch.dtype) -> str | None:
    """None if one of some differences, which are measured one by one, is small; else the reason."""
    reason = None
    try:
        for difference in differences:
            if difference <= _TOLERANCE.get(dtype, _HALF_TOLERANCE):
                return None
            reason = f"two sequences together give other logits than alone (by {difference:.2f})"
    # Models fail in any way at batches that they were not made for, and that is an answer.
    except Exception as error:
        return f"it fails on two sequences at once ({type(error).__name__})"
    return reason


def check_encoder_decoder_batch_invariance(runner: Runner, model: PreTrainedModel) -> str | None:
    """Do the same for a model with an encoder: for two sources, and two tokens of each reply.

    Args:
        runner: An `EncoderDecoderRunner`.
        model: Its model.
    """

    def difference() -> Iterator[float]:
        together = run_two_tokens(runner, model)
        alone = run_two_tokens(runner, model, together=False)
        yield max(_distance(one, other) for one, other in zip(together, alone, strict=True))

    return _reason(difference(), model.dtype)


def check_joined_batches(runner: EncoderDecoderRunner, model: PreTrainedModel) -> str | None:
    """Have a sequence join one that began before; return how they differ from each alone.

    Args:
        runner: Runs both.
        model: Its model.
    """

    def difference() -> Iterator[float]:
        together = _run_joined(runner, model, math.inf)
        alone = _run_joined(runner, model, None)
        yield max(_distance(one, other) for one, other in zip(together, alone, strict=True))

    return _reason(difference(), model.dtype)


def _run_joined(
    runner: EncoderDecoderRunner, model: PreTrainedModel, most_padding: float | None
) -> torch.Tensor:
    """Return the logits of two steps of two sequences, of which one began three tokens later."""
    before, runner.most_padding = runner.most_padding, most_padding
    first, second = (
        [SequenceChunk(-1 - i, 0, (*as_source(source), 0))]
        for i, source in enumerate(_random_sequences(model, _ALIKE, seed=1))
    )
    try:
        runner.run(first)
        for _ in range(3):
            first = _next(first)
            runner.run(first)
        runner.run(second)
        logits = []
        for _ in range(2):
            first, second = _next(first), _next(second)
            logits.append(runner.run([*first, *second]))
        return torch.cat(logits)
    finally:
        runner.most_padding = before
        for row in (*first, *second):
            runner.release(row.key)


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
    sources = _random_sequences(model, _ALIKE, seed=0)
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


def _difference(
    runner: BatchRunner, model: PreTrainedModel, device: torch.device, seed: int
) -> float:
    """The largest distance of logits of a batch from those of its sequences alone."""
    sequences = list(zip(_random_sequences(model, _LENGTHS, seed), _SPLITS, strict=True))
    try:
        batches = [
            runner.run([SequenceChunk(-1 - i, 0, s[:n]) for i, (s, n) in enumerate(sequences)]),
            runner.run([SequenceChunk(-1 - i, n, s[n:]) for i, (s, n) in enumerate(sequences)]),
        ]
    finally:
        for index in range(len(sequences)):
            runner.release(-1 - index)
    worst = 0.0
    for index, (sequence, split) in enumerate(sequences):
        alone = _logits_alone(model, device, sequence)
        for logits, position in zip(batches, (split - 1, len(sequence) - 1), strict=True):
            worst = max(worst, _distance(logits[index], alone[position]))
    return worst


def _random_sequences(model: PreTrainedModel, lengths: Sequence[int], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = count_vocabulary(model)
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def _logits_alone(model: Any, device: torch.device, sequence: list[int]) -> torch.Tensor:
    ids = torch.tensor([sequence], device=device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    a, b = logits.double().cpu(), expected.double().cpu()
    a, b = a - a.mean(), b - b.mean()
    return float((a - b).norm() / b.norm().clamp(min=1e-9))
