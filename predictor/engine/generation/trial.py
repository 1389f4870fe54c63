"""Runs a model for one token on the meta device, before a weight is read."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.warmup import trial_on_meta


def check_one_token(model: PreTrainedModel) -> None:
    """Check that a model computes a token; what needs the values of tensors passes unchecked.

    No mask is given, whose values models look at.

    Args:
        model: The model, on the meta device.

    Raises:
        ModelUnusable: The model fails, and will with its weights.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": token, "decoder_input_ids": token, "use_cache": True}
    accepted = inspect.signature(model.forward).parameters
    with trial_on_meta(model), torch.no_grad():
        model(**{name: value for name, value in inputs.items() if name in accepted})
