"""How torch flattens nested results, intercepts operations, attends, and keeps a module's state.

Read in torch 2.13.0: ``torch/utils/_pytree.py``, ``torch/utils/_python_dispatch.py``,
``torch/nn/functional.py`` (`grouped_mm`), `torch._int_mm`, ``torch/nn/modules/module.py``,
``torch/_meta_registrations.py`` (`meta_nonzero`) and ``aten/src/ATen/native/native_functions.yaml``
(``_scaled_dot_product_flash_attention_for_cpu``). `Module.__setattr__` checks and registers a
parameter at every assignment. Streaming assigns parameters for every block of every forward pass,
and so writes to the dictionary itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from predictor.private.versions import Interface, Library, check, uncalled

TORCH = Library("torch", "2.13", "2.14")

INTERFACES = (
    Interface("torch.utils._pytree", "tree_flatten", ("tree", "is_leaf")),
    Interface("torch.utils._pytree", "tree_leaves", ("tree",)),
    Interface("torch.utils._pytree", "tree_unflatten", ("leaves", "treespec")),
    Interface(
        "torch.utils._python_dispatch",
        "TorchDispatchMode.__torch_dispatch__",
        ("func", "types", "args", "kwargs"),
    ),
    *uncalled("torch.utils._pytree", "TreeSpec"),
    *uncalled("torch.nn.functional", "grouped_mm"),
    *uncalled("torch", "_grouped_mm"),
    *uncalled("torch", "_int_mm"),
    *uncalled("torch.fx.experimental._config", "meta_nonzero_assume_all_nonzero"),
    *uncalled("torch", "_scaled_dot_product_flash_attention_for_cpu"),
    *uncalled("torch._C", "DisableTorchFunctionSubclass"),
    *uncalled("torch.nn", "_parameters", "_buffers", "_modules", of="Module"),
)

check(TORCH, *INTERFACES)

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

__all__ = ["TorchDispatchMode", "TreeSpec", "tree_flatten", "tree_leaves", "tree_unflatten"]

GROUPED_PRODUCTS = (functional.grouped_mm, torch._grouped_mm)
"""The matrix products of experts, whose kernels on meta accept bfloat16 alone."""

int_mm = torch._int_mm
"""The product of two matrices in int8, in int32."""


flash_attention_on_cpu = torch._scaled_dot_product_flash_attention_for_cpu
"""Attention of a query to keys and values of the same size on a processor. It returns the output,
and the logarithm of the sum of the weights of each head and query."""

WithoutSubclasses = torch._C.DisableTorchFunctionSubclass
"""A context in which subclasses of tensors are plain ones (PyTorch's notes on extending it)."""


@contextlib.contextmanager
def all_nonzero_on_meta() -> Iterator[None]:
    """Have `nonzero` and `where` return every position of a tensor on meta, which has no values.

    So a mixture of experts that looks for the tokens of each expert computes every expert with all
    tokens, the most that it can have.
    """
    from torch.fx.experimental import _config

    config: Any = _config
    previous = config.meta_nonzero_assume_all_nonzero
    config.meta_nonzero_assume_all_nonzero = True
    try:
        yield
    finally:
        config.meta_nonzero_assume_all_nonzero = previous


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


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the dictionary of a module's own parameters, those of its children excluded."""
    return module._parameters


def own_attributes(module: nn.Module) -> Mapping[str, Any]:
    """Return all attributes of a module by name, except for its children."""
    return {name: value for name, value in vars(module).items() if name != "_modules"}
