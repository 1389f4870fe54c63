"""The slots for states of sequences, and which sequences own them.

Slots that no sequence owns hold copies of states for later sequences, under digests of the tokens
before them (`prefix_cache`). The copy that was used least recently goes first, when a sequence or
another copy needs its slot. Such slots count as free ones.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence

import torch


class RowSlots:
    """The slots of the rows of one forward pass, in their order.

    Attributes:
        are_consecutive: Whether rows are read without a copy.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        """Note the slots.

        Args:
            slots: The slot of each row.
        """
        self._range = slice(slots[0], slots[0] + len(slots))
        self.are_consecutive = list(slots) == list(range(self._range.start, self._range.stop))
        self._index = torch.tensor(slots)
        self._by_device: dict[torch.device, torch.Tensor] = {}

    def read(self, pool: torch.Tensor) -> torch.Tensor:
        """Return the states of the rows, of shape (rows, ...): a view or a copy."""
        if self.are_consecutive:
            return pool[self._range]
        return pool.index_select(0, self._on(pool.device))

    def write(self, pool: torch.Tensor, states: torch.Tensor) -> None:
        """Write the states of the rows."""
        if self.are_consecutive:
            pool[self._range].copy_(states)
        else:
            pool.index_copy_(0, self._on(pool.device), states.to(pool.dtype))

    def _on(self, device: torch.device) -> torch.Tensor:
        if device not in self._by_device:
            self._by_device[device] = self._index.to(device)
        return self._by_device[device]


class StateSlots:
    """The owners of slots, and the rows of the forward pass that runs.

    Attributes:
        count: How many slots there are.
        layers: The layers that keep a state in each slot.
        rows: The slots of the rows of the forward pass.
        continues: Whether its rows have a state; if not, all of them begin.
        active: The layer that the model is at; None before the first.
    """

    def __init__(self, count: int) -> None:
        """Begin with all slots free."""
        self.count = count
        self.layers: list[SlotLayer] = []
        self.rows = RowSlots([0])
        self.continues = False
        self._free = list(range(count))
        self._owned: dict[int, int] = {}
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        self._digests: dict[int, bytes] = {}
        self._unfinished: frozenset[int] = frozenset()
        self.active: SlotLayer | None = None

    @property
    def free(self) -> int:
        """How many slots no sequence owns."""
        return len(self._free) + len(self._kept)

    def keep(self, key: int, digest: bytes) -> None:
        """Keep the state that a sequence has now for others, if there is a slot for a copy.

        Args:
            key: The sequence.
            digest: The digest of its tokens so far.
        """
        self._digests[key] = digest  # until it goes on, its own slot has that state
        if digest in self._kept:
            self._kept.move_to_end(digest)
        elif self._free:
            self._free.sort()  # sequences take the first ones, and mostly consecutive ones so
            self._copy_into(self._free.pop(), key, digest)
        elif self._kept:
            self._copy_into(self._kept.popitem(last=False)[1], key, digest)

    def has(self, digest: bytes) -> bool:
        """Return whether there is a state after the tokens of a digest."""
        return digest in self._kept or digest in self._digests.values()

    def adopt(self, key: int, digest: bytes) -> None:
        """Give a sequence the state after the tokens of a digest, which there is."""
        owners = (owner for owner, own in self._digests.items() if own == digest)
        source = self._kept.pop(digest, None)
        if source is None:
            slot, source = self.take(key), self._owned[next(owners)]
        elif key in self._owned or self._free or self._kept:
            slot = self.take(key)
            self._kept[digest] = source
        else:
            slot = self._owned[key] = source
        self._copy(source, slot)
        self._digests[key] = digest

    def drop(self, digest: bytes) -> None:
        """Let no sequence have the state after the tokens of a digest from now on."""
        slot = self._kept.pop(digest, None)
        if slot is not None:
            heapq.heappush(self._free, slot)
        self._digests = {key: own for key, own in self._digests.items() if own != digest}

    def _copy_into(self, slot: int, key: int, digest: bytes) -> None:
        self._copy(self._owned[key], slot)
        self._kept[digest] = slot

    @torch.inference_mode()
    def _copy(self, source: int, slot: int) -> None:
        if source != slot:
            for layer in self.layers:
                layer.copy(source, slot)

    def take(self, key: int) -> int:
        """Return the slot of a sequence, which gets the first free one if it has none.

        Raises:
            MemoryError: No slot is free: more sequences run than were planned.
        """
        if key not in self._owned:
            if not self._free and self._kept:
                self._free.append(self._kept.popitem(last=False)[1])
            if not self._free:
                raise MemoryError(f"all {self.count} slots for states are in use")
            slot = self._owned[key] = heapq.heappop(self._free)
            self._clear(slot)
        return self._owned[key]

    @torch.inference_mode()
    def _clear(self, slot: int) -> None:
        for layer in self.layers:
            layer.clear(slot)

    def release(self, key: int) -> None:
        """Free the slot of a sequence."""
        self._digests.pop(key, None)
        slot = self._owned.pop(key, None)
        if slot is not None:
            heapq.heappush(self._free, slot)

    def owns(self, key: int) -> bool:
        """Return whether a sequence has a slot."""
        return key in self._owned

    def begin(self, keys: Sequence[int], *, continues: bool) -> None:
        """Begin a forward pass.

        Args:
            keys: The sequence of each row.
            continues: Whether all of them have a state; else none has.
        """
        self._unfinished, self.active = frozenset(keys), None
        for key in keys:
            self._digests.pop(key, None)
        self.rows, self.continues = RowSlots([self.take(key) for key in keys]), continues
        for layer in self.layers:
            layer.begin(continues=continues)

    def enter(self, layer: SlotLayer) -> None:
        """Write back what another layer may have changed in place."""
        if self.active is not None and self.active is not layer:
            self.active.store()
        self.active = layer

    def finish(self) -> None:
        """End a forward pass that succeeded."""
        if self.active is not None:
            self.active.store()
        self._unfinished, self.active = frozenset(), None

    def fail(self) -> None:
        """End a forward pass that failed, whose states may have changed."""
        for key in self._unfinished:
            self.release(key)
        self._unfinished, self.active = frozenset(), None


class StatePool:
    """One state of a layer in every slot, of shape (slots, ...), made at its first use.

    Attributes:
        rows: The states of the rows of the forward pass, if the model has read them.
    """

    def __init__(self, slots: StateSlots) -> None:
        """Take no memory yet."""
        self.rows: torch.Tensor | None = None
        self._slots = slots
        self._pool: torch.Tensor | None = None

    @property
    def is_written(self) -> bool:
        """Whether it has been written at all."""
        return self._pool is not None

    def read(self) -> torch.Tensor | None:
        """Return the states of the rows, which the model may change in place."""
        if self.rows is None and self._pool is not None:
            self.rows = self._slots.rows.read(self._pool)
        return self.rows

    def write(self, states: torch.Tensor) -> None:
        """Write the states of the rows, of shape (rows, ...)."""
        if states is self.rows:  # which changed in place
            self.store()
            return
        if self._pool is None:
            self._pool = states.new_zeros(self._slots.count, *states.shape[1:])
        self._slots.rows.write(self._pool, states)
        self.rows = None

    def store(self) -> None:
        """Write back the states of the rows, if they are a copy."""
        rows, self.rows = self.rows, None
        if rows is not None and not self._slots.rows.are_consecutive:
            self.write(rows)

    def clear(self, slot: int) -> None:
        """Forget the state in a slot."""
        if self._pool is not None:
            self._pool[slot] = 0

    def copy(self, source: int, slot: int) -> None:
        """Copy the state in a slot to another one."""
        if self._pool is not None:
            self._pool[slot].copy_(self._pool[source])


class SlotLayer:
    """A layer that keeps states in slots.

    Attributes:
        pools: Its states in every slot.
    """

    pools: tuple[StatePool, ...]

    def begin(self, *, continues: bool) -> None:  # noqa: ARG002
        """Begin a forward pass whose rows have a state or not."""
        for pool in self.pools:
            pool.rows = None

    def store(self) -> None:
        """Write back what the model changed in place."""
        for pool in self.pools:
            pool.store()

    def clear(self, slot: int) -> None:
        """Forget the state in a slot."""
        for pool in self.pools:
            pool.clear(slot)

    def copy(self, source: int, slot: int) -> None:
        """Copy the state in a slot to another one."""
        for pool in self.pools:
            pool.copy(source, slot)
