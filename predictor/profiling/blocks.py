"""Find the blocks of a model: the parts that are placed and streamed one by one."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from predictor.private.transformers import unsplit_classes


def find_blocks(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the blocks in execution order.

    Blocks are the modules that transformers does not split among devices. If a model names none,
    they are the members of its longest `ModuleList`. A model without either is one block. The
    blocks of a model with an encoder and a decoder are those of both, the encoder's first.
    """
    if not is_encoder_decoder(model):
        return _longest_list(model, model) or ("",)
    encoder, decoder = (_longest_list(model, stack) for stack in _stacks(model))
    return (encoder + decoder) or ("",)


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Return whether a model has an encoder and a decoder, each with blocks of its own."""
    if not model.config.is_encoder_decoder:
        return False
    encoder, decoder = _stacks(model)
    return encoder is not decoder and model not in (encoder, decoder)


def _stacks(model: Any) -> tuple[Any, Any]:
    return model.get_encoder(), model.get_decoder()


def _longest_list(model: PreTrainedModel, within: nn.Module) -> tuple[str, ...]:
    unsplit = unsplit_classes(model)
    longest: tuple[str, ...] = ()
    at = next(name for name, module in model.named_modules() if module is within)
    for name, module in within.named_modules(prefix=at):
        if not isinstance(module, nn.ModuleList) or len(module) <= len(longest):
            continue
        if not unsplit or any(type(member).__name__ in unsplit for member in module):
            longest = tuple(f"{name}.{index}" for index in range(len(module)))
    return longest
