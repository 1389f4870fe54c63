"""The states of sequences: a pool of slots for each layer that keeps a state.

State-space layers, linear attention and short convolutions keep a state of fixed size in place of
keys and values. A sequence that runs owns one slot, which is the same in all layers. For a forward
pass the states of its rows are read from their slots, and written back when the model goes on to
the next layer. If the slots are consecutive, the model works on the slots themselves.

A state cannot be computed again from a token on, as keys and values can. If a forward pass fails,
its rows lose their slots, and their sequences are computed again from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from predictor.engine.generation.state_slots import SlotLayer, StatePool, StateSlots
from predictor.private.cache_layers import LinearAttentionCacheLayerMixin


class _Rows:
    """The states of a layer by index, as the models look them up."""

    def __init__(self, layer: StateLayer, pools: Sequence[StatePool]) -> None:
        self._layer, self._pools = layer, pools

    def __getitem__(self, index: int) -> torch.Tensor | None:
        self._layer.enter()
        return self._pools[index].read()


class StateLayer(SlotLayer, LinearAttentionCacheLayerMixin):
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
        LinearAttentionCacheLayerMixin.__init__(self, number_of_states=states)
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
        super().begin(continues=continues)

    def enter(self) -> None:
        """Note that the model is at this layer."""
        self._slots.enter(self)

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
