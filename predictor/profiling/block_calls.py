"""Whether a model calls its blocks as modules, each equally often, if it cannot be measured.

The code of some blocks needs the values of tensors, which the meta device does not have. What is
around the blocks runs without them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from predictor.profiling.meta_device import FAILURES
from predictor.profiling.text_model import run_text

_MOST_RESULTS = 4
"""Most results of a block: its states, two biases of positions, and what a router chose."""


def calls_blocks_evenly(model: PreTrainedModel, blocks: Sequence[str]) -> bool:
    """Return whether a forward pass calls every block as a module, each equally often.

    Args:
        model: The model, on the meta device.
        blocks: The names of its blocks.
    """
    members = [model.get_submodule(name) for name in blocks if name]
    forms: list[Callable[[torch.Tensor], Any]] = [_tensor]
    forms += [partial(_in_tuple, others=count) for count in range(_MOST_RESULTS)]
    for result_of in forms:
        calls: Counter[int] = Counter()
        with contextlib.suppress(*FAILURES), _replaced(members, result_of, calls):
            run_text(model)
            counts = {calls[index] for index in range(len(members))}
            return len(counts) == 1 and 0 not in counts
    return False


@contextlib.contextmanager
def _replaced(
    blocks: Sequence[nn.Module], result_of: Callable[[torch.Tensor], Any], calls: Counter[int]
) -> Iterator[None]:
    """Have blocks return what they are given, and count their calls."""

    def forward_of(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls[index] += 1
            return result_of(_first_tensor((*args, *kwargs.values())))

        return forward

    with contextlib.ExitStack() as undone:
        for index, block in enumerate(blocks):
            undone.callback(vars(block).pop, "forward", None)
            vars(block)["forward"] = forward_of(index)
        yield


def _first_tensor(inputs: Sequence[Any]) -> torch.Tensor:
    for value in inputs:
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError("a block is given no tensor")


def _tensor(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def _in_tuple(hidden: torch.Tensor, *, others: int) -> tuple[torch.Tensor | None, ...]:
    """Return the states with so many other results, which are None."""
    return (hidden, *(None,) * others)
