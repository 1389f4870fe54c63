"""Runs a model for a token on the meta device, before a weight is read."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.errors import ModelUnusable, reason_of
from predictor.private.forward_arguments import forward_arguments

_LENGTHS = (1, 2, 4, 8, 16, 32)
"""Tokens of the texts that are tried. CANINE and Funnel pool neighbours, and need as many as they
pool."""


def check_one_token(model: PreTrainedModel) -> None:
    """Check that a model computes a token, or a text of a few if it has an encoder task.

    What needs the values of tensors passes unchecked. No mask is given, whose values models look
    at.

    Args:
        model: The model, on the meta device.

    Raises:
        ModelUnusable: The model fails, and will with its weights.
    """
    lengths = (1,) if model.can_generate() else _LENGTHS
    errors = (_error(model, tokens) for tokens in lengths)
    first = next(errors)
    if first is None or None in errors:
        return
    raise ModelUnusable(
        f"{type(model).__name__} cannot compute a token with this config: {reason_of(first)}"
    ) from first


def _error(model: PreTrainedModel, tokens: int) -> Exception | None:
    """Return the error of a forward pass, unless it is one of the meta device itself.

    Those come of code that needs the values of tensors, or of operations without a kernel there.
    """
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids, "decoder_input_ids": ids}
    if not model.config.is_encoder_decoder:  # not every encoder takes this argument
        inputs["use_cache"] = True
    accepted = forward_arguments(model)
    try:
        with torch.no_grad():
            model(**{name: value for name, value in inputs.items() if name in accepted})
    # Models raise errors of any type.
    except Exception as error:
        return None if _is_of_meta(error) else error
    return None


def _is_of_meta(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
