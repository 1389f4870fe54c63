"""The dictionaries in which a torch module keeps its own parameters and buffers.

Read in torch 2.13.0, ``torch/nn/modules/module.py``. `Module.__setattr__` checks and registers a
parameter at every assignment. Streaming assigns parameters for every block of every forward pass,
and so writes to the dictionary itself.
"""

from __future__ import annotations

import torch
from torch import nn


def parameter_slot(model: nn.Module, name: str) -> tuple[dict[str, nn.Parameter | None], str]:
    """Return the dictionary that holds a parameter, and the parameter's key there.

    Args:
        model: The whole model.
        name: The parameter's full name.
    """
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner)._parameters, key


def own_buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the dictionary of a module's own buffers, those of its children excluded."""
    return module._buffers
