"""Which slots the experts of one layer have: the same books in main memory and on an accelerator.

Integers only: the module knows no memory of slots and no way to fill it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from predictor.weights.experts.slot_policy import SlotPolicy, Step


class LayerSlots:
    """The slots of one layer's experts; one forward pass at a time.

    Attributes:
        policy: Decides which experts stay.
        held: The slot of each expert that is in one.
        free: Slots that hold no expert that stays; all layers share them.
    """

    def __init__(self, experts: int, quota: int, free: deque[int]) -> None:
        """Begin with no expert in a slot.

        Args:
            experts: Experts of the layer.
            quota: The most experts that stay; may be 0.
            free: The free slots.
        """
        self.policy = SlotPolicy(experts, quota)
        self.held: dict[int, int] = {}
        self.free = free
        self._leaving: set[int] = set()
        self._staying: set[int] = set()

    @property
    def experts(self) -> tuple[int, ...]:
        """The experts in slots, ascending; any thread may ask."""
        return tuple(sorted(self.held))

    def begin(self, counts: Sequence[int]) -> Step:
        """Begin a pass, and free the slots of experts that leave and are not used in it.

        Args:
            counts: For each expert its number of rows.
        """
        step = self.policy.step([expert for expert, count in enumerate(counts) if count])
        self._leaving, self._staying = set(step.evicted), set(step.admitted)
        for expert in self._leaving.difference(step.hits):
            self.leave(expert)
        return step

    def leave(self, expert: int) -> bool:
        """Free the slot of an expert that has computed, if it leaves; return whether it does."""
        if expert not in self._leaving:
            return False
        self._leaving.remove(expert)
        self.free.append(self.held.pop(expert))
        return True

    def settle(self, expert: int, slot: int) -> None:
        """Keep the slot of an expert that has come and computed if it stays, else free it."""
        if expert in self._staying:
            self.held[expert] = slot
        else:
            self.free.append(slot)

    def end(self) -> None:
        """End a pass, also one that failed: what did not come does not stay."""
        for expert in tuple(self._leaving):
            self.leave(expert)
        for expert in self._staying - self.held.keys():
            self.policy.forget(expert)
