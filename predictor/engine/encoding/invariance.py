"""Whether a model's answers depend on the company or on padding: a test at the start.

Two texts of different lengths are padded and computed in one batch, and must give what the model
gives for each alone and unpadded. A model that sees its padding (FNet mixes all columns) fails,
and is served one text at a time, unpadded. So is a model that attends otherwise in longer batches
(BigBird).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from predictor.checkpoint.vocabulary import vocabulary_of
from predictor.engine.encoding.inputs import EncoderInput
from predictor.engine.encoding.runner import EncoderRunner

_SHORT, _LONG = (21, 6), (1000, 530)
"""Tokens of two texts. Some models attend to long texts in another way."""

_TOLERANCE = {torch.float16: 0.004, torch.bfloat16: 0.03}
_SINGLE_TOLERANCE = 1e-4
"""Most difference, as a fraction of the norm of an answer: in half precision four times the
rounding of a number. Rounding changes about 1e-6 of an answer in float32, and 3e-3 in bfloat16.
Padding in sight of YOSO and Funnel changes 3 to 15 hundredths, and in sight of FNet a tenth and
more."""

_TRIES = 3
"""Pairs of texts, most of which decide: a mixture of experts may choose others for a text if two
are nearly as good."""


def check_padding_invariance(
    runner: EncoderRunner, model: PreTrainedModel, *, end: int, longest: int
) -> str | None:
    """Run two texts together and alone; return how they differ, or None if they do not.

    Args:
        runner: Runs batches that are padded.
        model: Its model.
        end: The token that ends a text.
        longest: Most tokens of a text.
    """
    if runner.sees_columns:
        return "it attends otherwise to a text in a longer batch"
    vocabulary = vocabulary_of(model.config)
    short = tuple(min(length, longest) for length in _SHORT)
    for lengths in [short, *([_LONG] if longest >= _LONG[0] else [])]:
        reason = _reason(runner, model.dtype, _texts(lengths, vocabulary, end))
        if reason is not None:
            return reason
    return None


def _reason(
    runner: EncoderRunner, dtype: torch.dtype, pairs: Iterator[list[EncoderInput]]
) -> str | None:
    tolerance = _TOLERANCE.get(dtype, _SINGLE_TOLERANCE)
    alike, different = 0, 0
    for texts in pairs:
        alone = [runner.run_unpadded(text) for text in texts]
        # A model may fail in any way on texts that it was not made for, and that is an answer.
        try:
            together = runner.run_padded(texts)
        except Exception as error:
            return f"it fails on two texts at once ({type(error).__name__})"
        worst = max(_distance(a, b) for a, b in zip(together, alone, strict=True))
        alike += worst <= tolerance
        different += not worst <= tolerance
        if different > _TRIES // 2:
            return f"padding changes its answers (by {worst:.2g} of their size)"
        if alike > _TRIES // 2:
            break
    return None


def _texts(lengths: Sequence[int], vocabulary: int, end: int) -> Iterator[list[EncoderInput]]:
    """Yield pairs of random texts of these lengths, each with its end and no special token else."""
    for seed in range(_TRIES):
        generator = torch.Generator().manual_seed(seed)
        first = min(vocabulary // 2, 1000)  # special tokens are mostly the first
        yield [
            EncoderInput(
                (*torch.randint(first, vocabulary, (n - 1,), generator=generator).tolist(), end)
            )
            for n in lengths
        ]


def _distance(given: Any, expected: Any) -> float:
    a, b = (np.asarray(one, dtype=np.float64) for one in (given, expected))
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-3)
