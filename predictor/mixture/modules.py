"""Find the experts of a model's blocks, on the meta device as well as loaded.

Experts are known by transformers' experts interface, which one function serves for all families.
Mixtures that do not go through it are recognised too, so that a plan can say so; their blocks are
streamed whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from predictor.mixture.parameters import expert_tensors
from predictor.placement.buffers import slot_bytes
from predictor.placement.units import Experts
from predictor.private.experts import uses_experts_interface

_ROUTED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
"""The entries of configs that state how many experts a token uses."""

_COUNT = "num_experts"
"""The attribute of experts and routers that is the number of experts."""


@dataclass(frozen=True, slots=True)
class ExpertsModule:
    """The experts of one block.

    Attributes:
        name: The name of their module in the model.
        count: The number of experts.
        routed: The number of experts that a token uses.
        parameters: The keys of the module's own parameters that hold one expert for each index of
            their first dimension, in the module's order. Its other tensors are of the dense part.
        slices: Bytes of one expert in each of these parameters.
    """

    name: str
    count: int
    routed: int
    parameters: tuple[str, ...]
    slices: tuple[int, ...]

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot for one expert."""
        return slot_bytes(self.slices)

    @property
    def weights(self) -> int:
        """Bytes of all experts."""
        return self.count * sum(self.slices)

    @property
    def placed(self) -> Experts:
        """The experts as placement counts them."""
        return Experts(self.name, self.count, self.routed, self.slot_bytes, self.weights)


def find_experts(model: nn.Module, blocks: Iterable[str]) -> dict[str, ExpertsModule]:
    """Return the experts by the name of their block.

    Blocks without experts are left out, and so are blocks that are streamed whole because their
    experts do not go through transformers' interface, or because they have more than one module of
    experts.

    Args:
        model: The model, on any device.
        blocks: The names of its blocks.
    """
    modules = {block: _experts_of(model, block) for block in blocks}
    return {block: experts[0] for block, experts in modules.items() if len(experts) == 1}


def names_of_experts(model: nn.Module, modules: Iterable[str]) -> frozenset[str]:
    """Return the names of the model's parameters that hold the experts of these modules."""
    return frozenset(
        f"{name}.{key}" for name in modules for key in expert_tensors(model.get_submodule(name))
    )


def find_mixtures(model: nn.Module, blocks: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the blocks that have experts, whether or not `find_experts` finds them.

    Args:
        model: The model, on any device.
        blocks: The names of its blocks.
    """
    return tuple(
        block
        for block in blocks
        if any(getattr(module, _COUNT, 0) > 1 for module in model.get_submodule(block).modules())
    )


def _experts_of(model: nn.Module, block: str) -> list[ExpertsModule]:
    named = model.get_submodule(block).named_modules(prefix=block)
    return [
        _describe(model, name, module) for name, module in named if uses_experts_interface(module)
    ]


def _describe(model: nn.Module, name: str, module: nn.Module) -> ExpertsModule:
    count: int = getattr(module, _COUNT)
    names = expert_tensors(module).keys()
    held = {key: tensor for key, tensor in module.named_parameters(recurse=False) if key in names}
    return ExpertsModule(
        name=name,
        count=count,
        routed=min(count, _routed(model, name, module)),
        parameters=tuple(held),
        slices=tuple(parameter.nbytes // count for parameter in held.values()),
    )


def _routed(model: nn.Module, name: str, experts: nn.Module) -> int:
    """Return the experts that a token uses: as the router beside them says, else the config."""
    parent = model.get_submodule(name.rpartition(".")[0])
    routers = [parent, *(child for child in parent.children() if child is not experts)]
    stated = (getattr(router, "top_k", None) for router in routers)
    numbers = (number for number in (*stated, *_configured(experts)) if isinstance(number, int))
    return next(numbers, getattr(experts, _COUNT))


def _configured(experts: Any) -> Iterator[Any]:
    config = getattr(experts, "config", None)
    yield from (getattr(config, key, None) for key in _ROUTED)
