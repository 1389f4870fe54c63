"""One step of recurrences for many sequences at once, on the memory of their states.

transformers computes a step with the tensors that a kernel for GPUs takes: each operation makes a
tensor as large as all states, about nine in a step. With many sequences that takes longer than the
model's weights do. Here, a step reads the states three times, and makes no tensor of their size.

The parameters come as transformers' models give them. Results are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

_EPSILON = 1e-6
"""What keeps the norm of a query or key from being zero, as in transformers."""


def step_mamba(
    state: torch.Tensor,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    rates: torch.Tensor,
    entry: torch.Tensor,
    readout: torch.Tensor,
    skip: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    z: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Compute a step of Mamba, whose channels decay in their own ways.

    Args:
        state: The states, of shape (rows, channels, state size), which are changed in place.
        hidden_states: The inputs, of shape (rows, channels).
        dt: Time steps, of the same shape.
        rates: The logarithm of the decay in a unit of time, of shape (channels, state size).
        entry: How inputs enter a state, of shape (rows, state size).
        readout: How outputs are read from a state, of the same shape.
        skip: The part of an input that is added to the output, of shape (channels,).
        dt_bias: What is added to time steps, of shape (channels,).
        dt_softplus: Whether time steps are made positive.
        z: The gate, of the shape of inputs.

    Returns:
        The outputs, of the shape of inputs.
    """
    steps = _time_steps(dt, dt_bias, is_positive=dt_softplus).float()
    decay = (steps[..., None] * rates.float()).exp_()
    output = _advance(state, hidden_states * steps, decay, entry, readout).to(readout.dtype)
    return _finish(output, hidden_states, skip, z)


def step_mamba2(
    state: torch.Tensor,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    rates: torch.Tensor,
    entry: torch.Tensor,
    readout: torch.Tensor,
    skip: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Compute a step of Mamba-2: that of Mamba for each head, which decays as a whole.

    Args:
        state: The states, of shape (rows, heads, head size, state size), which are changed in
            place.
        hidden_states: The inputs, of shape (rows, heads, head size).
        dt: Time steps of that shape, equal within a head.
        rates: The logarithm of the decay in a unit of time, equal within a head, of shape (heads,
            head size, state size).
        entry: How inputs enter a state, of shape (rows, groups of heads, state size).
        readout: How outputs are read from a state, of the same shape.
        skip: The part of an input that is added to the output, of shape (heads, head size).
        dt_bias: What is added to time steps, of that shape, equal within a head.
        options: See `step_mamba`.

    Returns:
        The outputs, of the shape of inputs.
    """
    heads = hidden_states.shape[1]
    entries, readouts = (
        part.repeat_interleave(heads // part.shape[1], dim=1) for part in (entry, readout)
    )
    bias = None if dt_bias is None else dt_bias[..., :1]
    shared = dt[..., :1], rates[..., :1, :1]
    return step_mamba(state, hidden_states, *shared, entries, readouts, skip, bias, **options)


def step_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    output_final_state: bool = True,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute a step of the gated delta rule, or of Kimi's, whose keys' channels have own decays.

    Args:
        query: The query of one token, of shape (rows, 1, groups of heads, key size).
        key: Its key, of the same shape.
        value: Its value, of shape (rows, 1, heads, value size).
        g: The logarithm of the decay, of shape (rows, 1, heads), or with one for each channel of a
            key.
        beta: How much of a key's value is replaced, of shape (rows, 1, heads).
        initial_state: The states, of shape (rows, heads, key size, value size), which are changed
            in place.
        output_final_state: Whether the states are returned.
        use_qk_l2norm_in_kernel: Whether queries and keys are made vectors of length 1.

    Returns:
        The outputs, of the shape of values; and the states or None.
    """
    queries, keys, values = (part[:, 0].float() for part in (query, key, value))
    if use_qk_l2norm_in_kernel:
        queries, keys = (
            part * (part.square().sum(-1, keepdim=True) + _EPSILON).rsqrt()
            for part in (queries, keys)
        )
    repeats = values.shape[1] // keys.shape[1]
    queries, keys = (part.repeat_interleave(repeats, dim=1) for part in (queries, keys))
    queries = queries / queries.shape[-1] ** 0.5
    decay = g[:, 0].float().exp()
    decay = decay if decay.ndim == keys.ndim else decay[..., None]
    state = initial_state.float()
    recalled = (torch.stack((keys, queries), dim=-2) * decay[..., None, :]) @ state
    change = (values - recalled[..., 0, :]) * beta[:, 0, :, None].float()
    state.mul_(decay[..., None]).addcmul_(keys[..., None], change[..., None, :])
    output = recalled[..., 1, :] + (queries * keys).sum(-1, keepdim=True) * change
    return output[:, None].to(query.dtype), state if output_final_state else None


STEPS: Mapping[str, Callable[..., Any]] = {
    "mamba_selective_state_update": step_mamba,
    "mamba2_selective_state_update": step_mamba2,
    "torch_recurrent_gated_delta_rule": step_delta_rule,
    "recurrent_kimi_delta_attention": step_delta_rule,
}
"""The functions here by the names of those that they replace, see `private.recurrences`."""


def _time_steps(
    steps: torch.Tensor, bias: torch.Tensor | None, *, is_positive: bool
) -> torch.Tensor:
    steps = steps if bias is None else steps + bias.to(steps.dtype)
    return functional.softplus(steps) if is_positive else steps


def _advance(
    state: torch.Tensor,
    inputs: torch.Tensor,
    decay: torch.Tensor,
    entry: torch.Tensor,
    readout: torch.Tensor,
) -> torch.Tensor:
    """Let states decay, add the inputs, and read the outputs."""
    exact = state.float()
    exact.mul_(decay).addcmul_(inputs.float()[..., None], entry.float()[..., None, :])
    if exact is not state:
        state.copy_(exact)
    return (exact @ readout.float()[..., None]).squeeze(-1)


def _finish(
    output: torch.Tensor, inputs: torch.Tensor, skip: torch.Tensor | None, gate: torch.Tensor | None
) -> torch.Tensor:
    output = output if skip is None else output + inputs * skip
    output = output if gate is None else output * functional.silu(gate)
    return output.to(inputs.dtype)
