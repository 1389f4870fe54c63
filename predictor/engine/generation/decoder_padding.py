"""Tell decoders of the padding on the left of sequences that share a forward pass.

The mask hides the padding, and each row's positions begin after it. Decoders differ in what they
read:

- Most count absolute positions from the length of their cache, which is the same for all rows
  (``past_key_values_length`` in transformers). Each module that takes this number is called once
  for each amount of padding.
- Others take positions (``position_ids``), T5Gemma's for instance, or a mask of their own
  (``decoder_padding_mask``) that their model leaves out if there is a cache, as FSMT's.
- Relative positions, such as T5's, need nothing.
- Some cannot be told: their positions count the cache itself, as ProphetNet's, or a router takes
  the padding of one row for that of others, as NLLB's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

_PAST, _POSITIONS, _MASK = "past_key_values_length", "position_ids", "decoder_padding_mask"


class DecoderPadding:
    """The padding of the rows of a decoder's forward pass."""

    def __init__(self, decoder: nn.Module) -> None:
        """Wrap a decoder, and the modules in it that count positions."""
        self._pads: Sequence[int] | None = None
        self._mask = torch.empty(0)
        counting = [module for module in decoder.modules() if _PAST in _parameters(module)]
        for module in counting:
            self._wrap(module, _count_by_padding)
        names = _parameters(decoder)
        if _MASK in names or (_POSITIONS in names and not counting):
            self._wrap(decoder, functools.partial(_add_arguments, counts=bool(counting)))

    def set(self, pads: Sequence[int], mask: torch.Tensor | None) -> None:
        """Set the padding of the next forward passes.

        Args:
            pads: Columns of padding before the tokens of each row.
            mask: 1 for each column that is no padding, of shape (rows, columns), the columns of the
                cache first; None if no column is padding.
        """
        self._pads = None if mask is None else pads
        self._mask = self._mask if mask is None else mask

    def clear(self) -> None:
        """Set no padding."""
        self._pads, self._mask = None, torch.empty(0)

    def _wrap(self, module: Any, padded: _Padded) -> None:
        forward = module.forward
        signature = inspect.signature(forward)

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._pads is None:
                return forward(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            return padded(forward, bound, self._pads, self._mask)

        module.forward = wrapped


_Padded = Callable[[Callable[..., Any], inspect.BoundArguments, Sequence[int], torch.Tensor], Any]
"""Calls a wrapped function with its arguments for rows with padding, and their mask."""


def _count_by_padding(
    forward: Callable[..., Any], bound: inspect.BoundArguments, pads: Sequence[int], _: torch.Tensor
) -> torch.Tensor:
    """Return the positions of each row, of shape (rows, tokens, hidden)."""
    bound.apply_defaults()
    arguments = bound.arguments
    by_padding = {}
    for padding in set(pads):
        changed = {**arguments, _PAST: arguments[_PAST] - padding}
        if arguments.get(_POSITIONS) is not None:
            changed[_POSITIONS] = arguments[_POSITIONS] - padding
        positions = forward(**changed)
        by_padding[padding] = positions.expand(len(pads), *positions.shape[-2:])
    return torch.stack([by_padding[padding][row] for row, padding in enumerate(pads)])


def _add_arguments(
    forward: Callable[..., Any],
    bound: inspect.BoundArguments,
    pads: Sequence[int],
    mask: torch.Tensor,
    *,
    counts: bool,
) -> Any:
    """Call a decoder with the positions of each row and with the mask, if it takes these.

    Args:
        forward: The decoder.
        bound: Its arguments.
        pads: Columns of padding of each row.
        mask: 1 for each column that is no padding.
        counts: Whether its modules count positions.
    """
    parameters, arguments = bound.signature.parameters, dict(bound.arguments)
    for name in list(arguments):  # all by name: functions around it take no arguments by position
        if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
    if _MASK in parameters:
        arguments[_MASK] = mask == 0
    if _POSITIONS in parameters and not counts:
        new = arguments["input_ids"].shape[1]
        columns = torch.arange(mask.shape[1] - new, mask.shape[1], device=mask.device)
        arguments[_POSITIONS] = columns - torch.tensor(pads, device=mask.device)[:, None]
    return forward(**arguments)


def reason_against_padding(model: Any) -> str | None:
    """Return why rows of the decoder cannot have padding, by its modules; None if they can.

    Args:
        model: A model with an encoder, which may be on the meta device.
    """
    for module in find_decoder(model).modules():
        taken = _parameters(module)
        if isinstance(module, nn.Embedding) and "past_key_values" in taken:
            return "its positions count the tokens of the cache, which all rows share"
        if "padding_mask" in taken:
            return "its router takes the padding of one row for that of others"
    return None


def _parameters(module: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(module.forward).parameters)


def find_decoder(model: Any) -> nn.Module:
    """Return the decoder of a model with an encoder."""
    decoder: nn.Module = model.get_decoder()
    return decoder
