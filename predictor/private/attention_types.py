"""Models that choose their attention by the length of a text, and keep that for later texts.

BigBird attends to a long text in blocks. The first short text makes transformers replace the
attention of all layers for good, after which the same long text has another answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def keep_attention_type(model: PreTrainedModel) -> bool:
    """Have each forward pass begin with the attention of the config; return if that can change."""
    changing = list(_outermost(model))
    for module in changing:
        if not getattr(module, "begins_as_configured", False):
            module.begins_as_configured = True
            module.set_attention_type = _WithoutMemory(module.set_attention_type)
            module.register_forward_pre_hook(_set_as_configured)
    return any(module.config.attention_type != "original_full" for module in changing)


def _outermost(module: nn.Module) -> Any:
    """Yield the modules that set the attention of all that they contain."""
    if hasattr(module, "set_attention_type"):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


class _WithoutMemory:
    """Sets an attention type; the weights that transformers makes for that are not used."""

    def __init__(self, set_type: Any) -> None:
        self._set_type = set_type

    def __call__(self, value: str) -> None:
        with torch.device("meta"):
            self._set_type(value)


def _set_as_configured(module: Any, _: Any) -> None:
    module.set_attention_type(module.config.attention_type)
