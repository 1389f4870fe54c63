"""Positions of decoders whose sequences are padded on the left to share a forward pass.

Decoders count absolute positions from the length of their cache, which is the same for all rows
(``past_key_values_length`` in transformers). A row with padding before its tokens is behind by
that. So each module that takes this number is called once for each amount of padding. Relative
positions, such as T5's, need nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

_PAST = "past_key_values_length"


class DecoderPositions:
    """The padding of the rows of a decoder's forward pass.

    Attributes:
        pads: Columns of padding before the tokens of each row; None if there are none.
    """

    def __init__(self, decoder: nn.Module) -> None:
        """Wrap the modules of a decoder that count positions."""
        self.pads: Sequence[int] | None = None
        for module in decoder.modules():
            if _PAST in inspect.signature(module.forward).parameters:
                self._wrap(module)

    def _wrap(self, module: Any) -> None:
        forward = module.forward
        signature = inspect.signature(forward)

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self.pads is None:
                return forward(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return _by_padding(forward, bound.arguments, self.pads)

        module.forward = wrapped


def _by_padding(
    forward: Callable[..., torch.Tensor], arguments: dict[str, Any], pads: Sequence[int]
) -> torch.Tensor:
    """Return the positions of each row, of shape (rows, tokens, hidden)."""
    if "position_ids" in arguments:
        arguments = {**arguments, "position_ids": None}  # they are counted from the cache's length
    by_padding = {}
    for padding in set(pads):
        positions = forward(**{**arguments, _PAST: arguments[_PAST] - padding})
        by_padding[padding] = positions.expand(len(pads), *positions.shape[-2:])
    return torch.stack([by_padding[padding][row] for row, padding in enumerate(pads)])


def find_decoder(model: Any) -> nn.Module:
    """Return the decoder of a model with an encoder."""
    decoder: nn.Module = model.get_decoder()
    return decoder
