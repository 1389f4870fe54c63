"""Whether a model can be batched, by a test with a few sequences.

A model that cannot be batched is served one sequence at a time. A config may promise too much, so
the promise is tested: sequences of different lengths are computed in one batch and in chunks, and
must give the logits that each gives alone. Wrong masks or positions change logits a lot; rounding,
which differs with the batch's size, changes them a little. A model that is served one sequence at a
time is tested in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.cache_kinds import attends_to_whole_prompt
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.engine.generation.serial_runner import generation_inputs
from predictor.engine.generation.state_watch import StateWatch
from predictor.errors import ModelUnusable, reason_of
from predictor.private.forward_arguments import forward_arguments

_TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
_HALF_TOLERANCE = 0.15
"""Most difference, as a fraction of the spread of the logits. Rounding changes about 1e-6 of it in
float32, and 0.02 to 0.06 in bfloat16 over 22 blocks of random weights. Another sequence's tokens in
sight change a third and more. An error smaller than rounding cannot be seen this way: the
architectures that batch are tested in float32."""

_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Errors of a model's own code, which a restart does not mend."""

_TRIES = 3
"""Pairs of sequences. A mixture of experts may choose others if two are nearly as good."""

Passes = tuple[tuple[tuple[int, int], ...], ...]
"""The rows of forward passes: a sequence, and how many of its tokens are computed. A sequence is
released when all of its tokens are."""

_BY_TOKENS: Passes = (((0, 5), (1, 3)), ((0, 4), (1, 1)))
"""Two sequences that share passes of different numbers of new tokens."""

_BEGINNING: Passes = (((0, 4), (1, 2)),)
_CHUNKS: Passes = (((0, 2), (1, 2)),)
_ENDING: Passes = (((0, 1), (1, 1)), ((2, 3),), ((1, 1), (2, 1)))
"""Two sequences that begin together, and a third in the slot of the first; for models with a state,
whose rows have equally many new tokens once they have begun."""

_BY_CHUNKS: Passes = _BEGINNING + _CHUNKS + _ENDING
_ONE_BY_ONE: Passes = _BEGINNING + (((0, 1), (1, 1)),) * 2 + _ENDING

_WHOLE: Passes = (((0, 7),), ((1, 2),))
"""Two sequences at once, since tokens that come later change what comes before."""


def count_vocabulary(model: PreTrainedModel) -> int:
    """Return how many token ids the model knows."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.num_embeddings)


def check_batch_invariance(
    runner: BatchRunner, model: PreTrainedModel, device: torch.device, *, one_by_one: bool = False
) -> str | None:
    """Run sequences together and alone; return how they differ, or None if they do not.

    Args:
        runner: The runner of batches.
        model: Its model.
        device: The device of its first part.
        one_by_one: Whether a state is continued one token at a time.
    """
    passes = _BY_TOKENS
    if runner.cache.keeps_state:
        passes = _ONE_BY_ONE if one_by_one else _BY_CHUNKS
        passes = passes if runner.cache.states.count > 1 else _alone(passes)
    return difference_in(_differences(runner, model, device, passes), model.dtype)


def check_serial(
    runner: Runner, model: PreTrainedModel, device: torch.device, *, one_by_one: bool = False
) -> str | None:
    """Do the same for a runner of one sequence at a time.

    Args:
        runner: A `SerialRunner`.
        model: Its model.
        device: The device of its first part.
        one_by_one: Whether a sequence is continued one token at a time.
    """
    passes = _alone(_ONE_BY_ONE if one_by_one else _BY_CHUNKS)
    if attends_to_whole_prompt(model):
        passes = _WHOLE
    try:
        for difference in _differences(runner, model, device, passes):
            is_wrong = difference > _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
            if not is_wrong:  # nor for numbers that are not finite, of which the warm-up tells
                return None
    except _MISTAKES as error:
        return f"it fails on its first tokens ({type(error).__name__}: {reason_of(error)})"
    return f"token by token it gives other logits than at once (by {difference:.2f})"


def refuse_serial(model: PreTrainedModel, reason: str) -> ModelUnusable:
    """Return the error for a model whose replies would be wrong even one at a time."""
    name = type(model).__name__
    return ModelUnusable(
        f"A {name} cannot be served with the installed transformers, because {reason}."
    )


def _alone(passes: Passes) -> Passes:
    """Only the first and the last sequence of forward passes, by themselves."""
    rows = [row for rows in passes for row in rows]
    return tuple((row,) for key in (0, 2) for row in rows if row[0] == key)


def _differences(
    runner: Runner, model: PreTrainedModel, device: torch.device, passes: Passes
) -> Iterator[float]:
    for seed in range(_TRIES):
        yield _difference(runner, model, device, passes, seed)


def difference_in(differences: Iterable[float], dtype: torch.dtype) -> str | None:
    """Return why sequences differ together; None if one of some differences is small.

    Args:
        differences: The largest distances of logits, measured one by one.
        dtype: The dtype of the model.
    """
    reason = None
    try:
        for difference in differences:
            if difference <= _TOLERANCE.get(dtype, _HALF_TOLERANCE):
                return None
            if difference == math.inf:
                return "its layers forget their state if there are several new tokens"
            reason = f"two sequences together give other logits than alone (by {difference:.2f})"
    # Models fail in any way at batches that they were not made for, and that is an answer.
    except Exception as error:
        return f"it fails on two sequences at once ({type(error).__name__})"
    return reason


def _difference(
    runner: Runner, model: PreTrainedModel, device: torch.device, passes: Passes, seed: int
) -> float:
    """The largest distance of logits of forward passes from those of their sequences alone."""
    lengths = [sum(n for rows in passes for key, n in rows if key == own) for own in range(3)]
    sequences = random_sequences(model, lengths, seed)
    results: list[tuple[int, int, torch.Tensor]] = []
    try:
        computed = [0] * len(sequences)
        for rows in passes:
            starts = {key: computed[key] for key, _ in rows}
            chunks = [
                SequenceChunk(-1 - key, starts[key], sequences[key][starts[key] :][:count])
                for key, count in rows
            ]
            logits_of_rows, forgets = _run_watched(runner, chunks)
            if forgets:
                return math.inf
            for (key, count), logits in zip(rows, logits_of_rows, strict=True):
                computed[key] += count
                results.append((key, computed[key] - 1, logits))
                if computed[key] == lengths[key]:
                    runner.release(-1 - key)
    finally:
        for key in range(len(sequences)):
            runner.release(-1 - key)
    alone = {key: _logits_alone(model, device, sequences[key]) for key, _, _ in results}
    return max(distance(logits, alone[key][position]) for key, position, logits in results)


def _run_watched(runner: Runner, rows: Sequence[SequenceChunk]) -> tuple[torch.Tensor, bool]:
    """The logits of a forward pass, and whether its rows had a state that the model ignores."""
    is_chunk = rows[0].start > 0 and len(rows[0].tokens) > 1
    if not isinstance(runner, BatchRunner) or not runner.cache.keeps_state or not is_chunk:
        return runner.run(rows), False
    with StateWatch(runner.cache.states) as watch:
        return runner.run(rows), not watch.is_complete


def random_sequences(model: PreTrainedModel, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Return random token ids for sequences of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = count_vocabulary(model)
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def _logits_alone(model: Any, device: torch.device, sequence: list[int]) -> torch.Tensor:
    ids = torch.tensor([sequence], device=device)
    accepted = forward_arguments(model)
    inputs = generation_inputs(
        model, accepted, ids, new=len(sequence), kept_logits=0, use_cache=False
    )
    logits: torch.Tensor = model(**inputs).logits[0]
    return logits


def is_far(logits: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether logits differ from others by more than rounding."""
    return not distance(logits, expected) <= _TOLERANCE.get(dtype, _HALF_TOLERANCE)


def distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far logits are from others, as a fraction of the spread of the others."""
    a, b = logits.double().cpu(), expected.double().cpu()
    a, b = a - a.mean(), b - b.mean()
    return float((a - b).norm() / b.norm().clamp(min=1e-9))
