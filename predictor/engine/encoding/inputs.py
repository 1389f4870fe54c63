"""What a reader is given: whole texts as tokens, and the batches that they are run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Listener = Callable[[Any], None]
"""Is told, in the engine's thread, what was found for a text, or the `PredictorError` instead."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text, or a pair of them, as the model reads it.

    Attributes:
        ids: Its tokens, special ones among them; at least one.
        types: For each token which text of a pair it is of; None where the model is not told.
        about: What the task remembers of it, such as where its tokens come from.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    about: Any = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that were run together, padded on the right to one length.

    Attributes:
        texts: The texts, one a row.
        mask: 1 where a row has a token, of shape (rows, length), where the model's results are.
    """

    texts: Sequence[Text]
    mask: torch.Tensor


Run = Callable[[Any, Batch], Sequence[Any]]
"""Makes what is found for each row, in main memory, of a model's output."""
