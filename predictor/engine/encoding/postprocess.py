"""What an encoder task needs of a model's output: one array for each text, in main memory.

The arrays are numpy's, in float32, so that whoever makes answers of them needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from predictor.engine.encoding.inputs import MAX_TOP_K, EncoderInput

Array = np.ndarray[Any, np.dtype[np.float32]]


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


def postprocess_for(task: str, *, pooling: str = "mean") -> Postprocess:
    """Return the postprocessing of an encoder task.

    Args:
        task: The task's name.
        pooling: How the states of all tokens become one vector, for text embedding, see `pool`.
    """
    if task == "text_embedding":
        return partial(_vectors, pooling=pooling)
    return _BY_TASK[task]


def comparable(postprocess: Postprocess) -> Postprocess:
    """Return a postprocessing whose results can be compared as numbers.

    The most probable tokens come with their ids, in an order that rounding may change; their logits
    do not.
    """
    return _token_logits if postprocess is _token_probabilities else postprocess


def _logits(output: Any, batch: EncoderBatch) -> Sequence[Array]:  # noqa: ARG001
    """Return each row's logits, of shape (labels,)."""
    return list(_array(output.logits))


def _token_logits(output: Any, batch: EncoderBatch) -> Sequence[Array]:
    """Return each row's logits, of shape (tokens, labels)."""
    logits = _array(output.logits)
    return [logits[row, : len(text.ids)] for row, text in enumerate(batch.texts)]


def _span_logits(output: Any, batch: EncoderBatch) -> Sequence[Array]:
    """Return each row's logits of where an answer starts and ends, of shape (2, tokens)."""
    logits = _array(torch.stack([output.start_logits, output.end_logits], dim=1))
    return [logits[row, :, : len(text.ids)] for row, text in enumerate(batch.texts)]


def _token_probabilities(output: Any, batch: EncoderBatch) -> Sequence[Array]:
    """Return each row's most probable tokens at its positions, of shape (2, positions, tokens).

    First their probabilities, best first, then their ids, which float32 holds exactly.
    """
    results = []
    for row, text in enumerate(batch.texts):
        probabilities = output.logits[row, list(text.positions)].float().softmax(dim=-1)
        best = probabilities.topk(min(MAX_TOP_K, probabilities.shape[-1]))
        results.append(_array(torch.stack([best.values, best.indices.float()])))
    return results


def _vectors(output: Any, batch: EncoderBatch, pooling: str) -> Sequence[Array]:
    """Return each row's vector, of shape (hidden,)."""
    return list(_array(pool(output.last_hidden_state, batch.mask, pooling)))


_BY_TASK: Mapping[str, Postprocess] = {
    "sequence_classification": _logits,
    "rerank": _logits,
    "token_classification": _token_logits,
    "question_answering": _span_logits,
    "fill_mask": _token_probabilities,
}


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.float().cpu().numpy()
    return array


def pool(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """Return one vector for each row, of shape (rows, hidden), as sentence-transformers does.

    Args:
        states: The model's last states, of shape (rows, length, hidden).
        mask: 1 where a row has a token, of shape (rows, length); padding is on the right.
        mode: One of `SentenceLayout.pooling`.
    """
    mask = mask.to(states.device)
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    weights = mask[:, :, None].to(torch.float32)
    if mode == "max":
        return states.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    if mode == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, device=states.device)[None, :, None]
    total = weights.sum(dim=1)
    summed = (states.float() * weights).sum(dim=1)
    return summed / (total.sqrt() if mode == "mean_sqrt_len" else total)
