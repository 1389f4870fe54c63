"""Whether the model uses the states of its rows in a forward pass."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode

from predictor.engine.generation.state_slots import StatePool, StateSlots
from predictor.private.torch import tree_leaves


class StateWatch(TorchFunctionMode):
    """Notes which states are an input of an operation, while it is the context of a forward pass.

    Some architectures forget the state of a recurrence if there are several new tokens. How far
    that changes logits depends on the weights, so it is not left to a comparison of logits.
    """

    def __init__(self, slots: StateSlots) -> None:
        """Watch the states of all layers."""
        super().__init__()
        self._slots = slots
        self._used: set[StatePool] = set()

    @property
    def is_complete(self) -> bool:
        """Whether every state that has been written before was used."""
        pools = [pool for layer in self._slots.layers for pool in layer.pools if pool.is_written]
        return self._used.issuperset(pools)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        active = self._slots.active
        if active is not None:
            inputs = [leaf for leaf in tree_leaves([args, kwargs]) if leaf is not None]
            self._used.update(
                pool for pool in active.pools if any(leaf is pool.rows for leaf in inputs)
            )
        return func(*args, **(kwargs or {}))
