"""The states of sequences: a pool of slots for each layer that keeps a state.

State-space layers, linear attention and short convolutions keep a state of fixed size in place of
keys and values. A sequence that runs owns one slot, which is the same in all layers. For a forward
pass the states of its rows are read from their slots, and written back when the model goes on to
the next layer. If the slots are consecutive, the model works on the slots themselves.

A state cannot be computed again from a token on, as keys and values can. If a forward pass fails,
its rows lose their slots, and their sequences are computed again from the beginning.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from predictor.private.cache_layers import LinearAttentionCacheLayerMixin


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
        self.layers: list[StateLayer] = []
        self.rows = RowSlots([0])
        self.continues = False
        self._free = list(range(count))
        self._owned: dict[int, int] = {}
        self._unfinished: frozenset[int] = frozenset()
        self.active: StateLayer | None = None

    @property
    def free(self) -> int:
        """How many slots no sequence owns."""
        return len(self._free)

    def take(self, key: int) -> int:
        """Return the slot of a sequence, which gets the first free one if it has none.

        Raises:
            MemoryError: No slot is free: more sequences run than were planned.
        """
        if key not in self._owned:
            if not self._free:
                raise MemoryError(f"all {self.count} slots for states are in use")
            slot = self._owned[key] = heapq.heappop(self._free)
            for layer in self.layers:
                layer.clear(slot)
        return self._owned[key]

    def release(self, key: int) -> None:
        """Free the slot of a sequence."""
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
        self.rows, self.continues = RowSlots([self.take(key) for key in keys]), continues
        for layer in self.layers:
            layer.begin(continues=continues)

    def enter(self, layer: StateLayer) -> None:
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


class _Rows:
    """The states of a layer by index, as the models look them up."""

    def __init__(self, layer: StateLayer, pools: Sequence[StatePool]) -> None:
        self._layer, self._pools = layer, pools

    def __getitem__(self, index: int) -> torch.Tensor | None:
        self._layer.enter()
        return self._pools[index].read()


class StateLayer(LinearAttentionCacheLayerMixin):
    """The states of one layer: of convolutions and of recurrences.

    Attributes:
        pools: Its states in every slot.
    """

    def __init__(self, slots: StateSlots, states: int) -> None:
        """Make an empty layer, whose memory is taken when it is first written.

        Args:
            slots: The slots of all layers.
            states: How many states of each kind there are.
        """
        super().__init__(number_of_states=states)
        self._slots = slots
        self._conv = [StatePool(slots) for _ in range(states)]
        self._recurrent = [StatePool(slots) for _ in range(states)]
        self.pools = (*self._conv, *self._recurrent)
        self.conv_states: Any = _Rows(self, self._conv)
        self.recurrent_states: Any = _Rows(self, self._recurrent)
        slots.layers.append(self)

    def begin(self, *, continues: bool) -> None:
        """Begin a forward pass whose rows have a state or not."""
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), continues)
        for pool in self.pools:
            pool.rows = None

    def enter(self) -> None:
        """Note that the model is at this layer."""
        self._slots.enter(self)

    def store(self) -> None:
        """Write back what the model changed in place."""
        for pool in self.pools:
            pool.store()

    def clear(self, slot: int) -> None:
        """Forget the state in a slot."""
        for pool in self.pools:
            pool.clear(slot)

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Do nothing: a state's memory is taken when it is first written."""

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Write the last columns of a convolution's input, and return them after those before.

        Args:
            conv_states: New columns, of shape (rows, channels, new).
            state_idx: Which of the layer's states it is.
            conv_kernel_size: How many columns are kept; None for as many as are new.
        """
        self.enter()
        pool = self._conv[state_idx]
        before = pool.read() if self.has_previous_state[state_idx] else None
        if before is not None:
            kept, states = before.shape[-1], torch.cat([before, conv_states], dim=-1)
        else:
            kept = conv_kernel_size or conv_states.shape[-1]
            missing = max(0, kept - conv_states.shape[-1])
            states = functional.pad(conv_states, (missing, 0))
        pool.write(states[..., -kept:])
        self.has_previous_state[state_idx] = True
        return states

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Write a recurrence's state, of shape (rows, ...), and return it."""
        self.enter()
        self._recurrent[state_idx].write(recurrent_states)
        return recurrent_states
