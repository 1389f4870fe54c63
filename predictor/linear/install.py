"""Have the linear layers of a model ask the table of kernels."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any, TypeGuard, cast

import torch
from torch import nn

from predictor.linear.kernels import LayerKind
from predictor.linear.table import KERNELS, LayerKernels
from predictor.linear.weight import LinearWeight


class TimedLinear(nn.Linear):
    """A linear layer that is computed by the kernel that was the quickest.

    All rows are one matrix. PyTorch multiplies inputs whose rows do not follow each other, such as
    the last positions of several sequences, with a copy of the weights for each sequence: 16
    sequences took 5 times as long in float32, and 900 times in bfloat16 with memory for 16 copies.

    Attributes:
        kernels: The kernels of its kind.
    """

    kernels: LayerKernels

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Return the outputs, of shape (..., out)."""
        return self.kernels.linear(input, LinearWeight.plain(self.weight), self.bias)


def is_linear(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Return whether a module is a linear layer that computes nothing else."""
    forwards = (nn.Linear.forward, TimedLinear.forward)
    return isinstance(module, nn.Linear) and type(module).forward in forwards


def is_weight_used_by(owner: nn.Module, name: str) -> bool:
    """Return whether a module uses the weight of a linear layer in it otherwise than by a call.

    Its code then says ``self.name.weight``, as that of T5 and Mamba. A packed layer has no such
    weight.

    Args:
        owner: The module.
        name: The name of the layer in it.
    """
    kind: Any = type(owner)
    code = _code_of(kind)
    return re.search(rf"\bself\.{re.escape(name)}\.weight\b", code) is not None


@functools.cache
def _code_of(kind: Any) -> str:
    """Return the code of a class, which takes milliseconds to find; nothing if it has no file."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def install(model: nn.Module) -> None:
    """Have linear layers on a processor ask the table of kernels.

    The class of the layers is changed and nothing else: their parameters, and the hooks that bring
    them, stay. Call this before hooks are attached that replace `forward`.

    Args:
        model: A model that computes on a processor, or one on the meta device.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            _install(module)


def _install(layer: nn.Linear) -> None:
    kind = LayerKind(None, layer.weight.dtype, "cpu", layer.out_features, layer.in_features)
    layer.__class__ = TimedLinear
    cast(TimedLinear, layer).kernels = KERNELS.of(kind)
