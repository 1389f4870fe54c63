"""The inputs of an encoder engine: whole texts as tokens, and the batches that they run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

EncoderCallback = Callable[[Any], None]
"""Called in the model thread with the result of a text, or with a `PredictorError` instead."""


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """One text, or a pair of texts, as tokens.

    Attributes:
        ids: The token ids, including special tokens; at least one.
        types: For each token, which text of a pair it belongs to; None if the model does not take
            token types.
        about: Data that the task keeps for its postprocessing, such as the tokens' offsets.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    about: Any = None


@dataclass(frozen=True, slots=True)
class EncoderBatch:
    """Texts that ran together, padded on the right to one length.

    Attributes:
        texts: The texts, one for each row.
        mask: 1 for each token, of shape (rows, length), on the device of the model's output.
    """

    texts: Sequence[EncoderInput]
    mask: torch.Tensor


Postprocess = Callable[[Any, EncoderBatch], Sequence[Any]]
"""Makes a result for each row, in main memory, of the model's output."""
