"""Whether a model can be batched: what its config says, then what two sequences show.

A model that cannot be is served one sequence at a time. A config may promise too much, so the
promise is tested: two sequences of different lengths are computed in one batch, one of them in
chunks, and must give the logits that each gives alone. Wrong masks or positions change them a lot;
rounding, which differs with the batch's size, changes them a little.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from predictor.engine.generation.encoder_decoder_runner import as_source
from predictor.engine.generation.kv_cache import Row
from predictor.engine.generation.runner import BatchRunner, Runner
from predictor.profiling.decoder_probe import WHOLE_KINDS

_TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
_HALF_TOLERANCE = 0.15
"""Most difference, as a fraction of how much the logits vary. Rounding changes about 1e-6 of it in
float32 and 0.02 to 0.06 in bfloat16 over 22 blocks of random weights. Another sequence's tokens in
sight change a third and more. What is smaller than rounding cannot be seen
this way: the architectures that batch are tested in float32."""

_TRIES = 3
"""Pairs of sequences; a mixture of experts may choose others where two are nearly as good."""

_LENGTHS = (9, 4)
_ALIKE = (9, 8)
"""Tokens of two sources that are read together."""

_SPLITS = (5, 3)
"""How many tokens of each are computed in the first pass."""


def count_layers(model: PreTrainedModel) -> int:
    """Returns how many layers a cache of the model may have."""
    config: Any = model.config.get_text_config(decoder=True)
    return len(get_layer_types_and_kwargs(config)[0])


def count_vocabulary(model: PreTrainedModel) -> int:
    """Returns how many token ids the model knows."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.num_embeddings)


def unbatchable_reason(model: PreTrainedModel) -> str | None:
    """Returns what in the model's config keeps it from being batched; None where nothing does."""
    accepted = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "attention_mask"):
        if name not in accepted:
            return f"its forward pass takes no {name}"
    if getattr(model, "_is_stateful", False):
        return "it keeps a state that cannot be shared"
    config: Any = model.config.get_text_config(decoder=True)
    kinds = set(get_layer_types_and_kwargs(config)[0]) - WHOLE_KINDS
    return f"it has layers of the kind {sorted(kinds)[0]}" if kinds else None


def check_batch_invariance(
    runner: BatchRunner, model: PreTrainedModel, device: torch.device
) -> str | None:
    """Runs two sequences together and alone; returns what differs, None where nothing does."""
    tries = (_difference(runner, model, device, seed=attempt) for attempt in range(_TRIES))
    return _judged(tries, model.dtype)


def _judged(differences: Iterable[float], dtype: torch.dtype) -> str | None:
    """What is wrong where none of some differences, measured one by one, is small; else None."""
    reason = None
    try:
        for difference in differences:
            if difference <= _TOLERANCE.get(dtype, _HALF_TOLERANCE):
                return None
            reason = f"two sequences together give other logits than alone (by {difference:.2f})"
    # Models fail in any way at what they were not made for, and that is an answer.
    except Exception as error:
        return f"it fails on two sequences at once ({type(error).__name__})"
    return reason


def check_encoder_decoder_batch_invariance(runner: Runner, model: PreTrainedModel) -> str | None:
    """The same of a model with an encoder: of two sources, and two tokens of each reply.

    Args:
        runner: A `EncoderDecoderRunner`.
        model: Its model.
    """

    def difference() -> Iterator[float]:
        together = run_two_tokens(runner, model)
        alone = run_two_tokens(runner, model, together=False)
        yield max(_apart(found, other) for found, other in zip(together, alone, strict=True))

    return _judged(difference(), model.dtype)


def run_two_tokens(
    runner: Runner, model: PreTrainedModel, *, together: bool = True
) -> torch.Tensor:
    """Returns the logits of two tokens after each of two sources, of shape (4, vocabulary).

    Args:
        runner: A `EncoderDecoderRunner`.
        model: Its model.
        together: Whether both are in each pass.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = count_vocabulary(model)
    sources = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in _ALIKE]
    begun = [Row(-1 - i, 0, (*as_source(source), 0)) for i, source in enumerate(sources)]
    passes = [begun, [Row(row.key, row.end, (1,)) for row in begun]]
    try:
        found = [
            runner.run(rows) if together else torch.cat([runner.run([row]) for row in rows])
            for rows in passes
        ]
    finally:
        for row in begun:
            runner.release(row.key)
    return torch.cat(found)


def _difference(
    runner: BatchRunner, model: PreTrainedModel, device: torch.device, seed: int
) -> float:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = count_vocabulary(model)
    sequences = [
        torch.randint(vocabulary, (length,), generator=generator).tolist() for length in _LENGTHS
    ]
    try:
        found = [
            runner.run([Row(-1 - i, 0, s[:n]) for i, (s, n) in enumerate(_split(sequences))]),
            runner.run([Row(-1 - i, n, s[n:]) for i, (s, n) in enumerate(_split(sequences))]),
        ]
    finally:
        for index in range(len(sequences)):
            runner.release(-1 - index)
    worst = 0.0
    for index, (sequence, split) in enumerate(_split(sequences)):
        alone = _alone(model, device, sequence)
        for batch, position in zip(found, (split - 1, len(sequence) - 1), strict=True):
            worst = max(worst, _apart(batch[index], alone[position]))
    return worst


def _split(sequences: Sequence[list[int]]) -> list[tuple[list[int], int]]:
    return list(zip(sequences, _SPLITS, strict=True))


@torch.inference_mode()
def _alone(model: Any, device: torch.device, sequence: list[int]) -> torch.Tensor:
    ids = torch.tensor([sequence], device=device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    a, b = found.double().cpu(), expected.double().cpu()
    a, b = a - a.mean(), b - b.mean()
    return float((a - b).norm() / b.norm().clamp(min=1e-9))
