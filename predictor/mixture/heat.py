"""The heat of experts: how often each expert of a layer is used, and which of them are in slots.

Integers only, so that the process that answers requests can show them without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_HOTTEST = 10
"""The hottest experts of a layer are one in so many."""


@dataclass(frozen=True, slots=True)
class LayerHeat:
    """The use of one layer's experts.

    Attributes:
        name: The name of the experts module.
        tokens: For each expert the tokens that the router gave to it.
        in_slots: The experts in slots, by tier: a GPU's index, or ``"cpu"``. Empty if the layer's
            experts are not read one by one.
    """

    name: str
    tokens: tuple[int, ...]
    in_slots: Mapping[str, tuple[int, ...]]

    @property
    def hottest_share(self) -> float:
        """The share of tokens that the most used tenth of the experts got; 0 before any token."""
        total = sum(self.tokens)
        hottest = -(-len(self.tokens) // _HOTTEST)
        return sum(sorted(self.tokens, reverse=True)[:hottest]) / total if total else 0.0


class SlottedLayer(Protocol):
    """A layer whose experts are read one by one."""

    @property
    def name(self) -> str:
        """The name of the experts module."""
        ...

    @property
    def in_slots(self) -> Mapping[str, tuple[int, ...]]:
        """The experts in slots, by tier; any thread may ask."""
        ...


class ExpertHeat:
    """The heat of all layers of one model. One thread counts, and any other may read."""

    def __init__(self, tokens: Mapping[str, list[int]], slotted: Sequence[SlottedLayer]) -> None:
        """Join the counts with the slots.

        Args:
            tokens: The counts of each experts module by its name, which grow with forward passes.
            slotted: The layers whose experts are read one by one.
        """
        self._tokens = tokens
        self._slotted = {layer.name: layer for layer in slotted}

    def read(self) -> tuple[LayerHeat, ...]:
        """Return the heat of each layer, in execution order."""
        return tuple(
            LayerHeat(name, tuple(counts), self._in_slots(name))
            for name, counts in self._tokens.items()
        )

    def _in_slots(self, name: str) -> Mapping[str, tuple[int, ...]]:
        layer = self._slotted.get(name)
        return {} if layer is None else layer.in_slots
