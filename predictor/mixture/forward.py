"""The one function between a router and its experts, whatever the family and wherever the weights.

transformers calls it for every mixture that goes through its experts interface
(``integrations/moe.py``), once it is registered and a config names it. It computes one expert after
the other, in the order in which their weights arrive. Each expert's rows are computed by
themselves, and the results are added in the order of the router's choice. So on one device the
result does not depend on where the weights were. A processor that computes experts beside a GPU
rounds otherwise.

Weights come from the module itself, or from the `ExpertSource` that is attached to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from predictor.linear.table import KERNELS
from predictor.linear.weight import LinearWeight
from predictor.mixture.parameters import (
    count_experts,
    expert_tensors,
    first_name,
    input_width,
    packed_parts,
)
from predictor.private.experts import (
    register_experts_function,
    select_experts_function,
    selected_experts_function,
    uses_experts_interface,
)
from predictor.shape_buckets import bucket_rows

_NAME = "predictor"
"""The name in configs of the function that this module registers."""

_SOURCE = "expert_source"

_TOKENS = "tokens_of_experts"
"""The attribute of an experts module that counts the tokens of each of its experts, if any does."""

ExpertWeights = Mapping[str, torch.Tensor]
"""One expert's tensors, by the names of the module's parameters; without the leading dimension."""


class ExpertSource(Protocol):
    """The weights of one layer's experts, for one forward pass at a time."""

    def fetch(
        self, counts: Sequence[int], hidden_states: torch.Tensor
    ) -> Iterator[tuple[int, ExpertWeights]]:
        """Yield each expert that has rows, and its weights, which last until the next one.

        Args:
            counts: For each expert the number of rows that the router gives to it.
            hidden_states: The router's input, of shape (tokens, hidden).

        Raises:
            WeightsUnreadable: An expert's weights cannot be read.
        """


def attach_source(module: nn.Module, source: ExpertSource) -> None:
    """Have an experts module compute with the weights of a source instead of its own."""
    setattr(module, _SOURCE, source)


def compute_here(model: nn.Module) -> None:
    """Have this module compute the experts of a model; a model without any is left alone."""
    modules = [module for module in model.modules() if uses_experts_interface(module)]
    if modules:
        register_experts_function(_NAME, compute_experts)
    for module in modules:
        select_experts_function(module, _NAME)


def count_tokens(model: nn.Module) -> dict[str, list[int]]:
    """Have this module count the tokens of each expert that it computes from now on.

    Returns:
        The counts, which grow with each forward pass, by the names of the experts modules.
    """
    tokens = {
        name: [0] * count_experts(module)
        for name, module in model.named_modules()
        if uses_experts_interface(module) and selected_experts_function(module) == _NAME
    }
    for name, counts in tokens.items():
        setattr(model.get_submodule(name), _TOKENS, counts)
    return tokens


def compute_experts(
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted sum of the chosen experts' outputs, of shape (tokens, hidden).

    Args:
        module: The experts module. Its flags say how its weights are laid out.
        hidden_states: The router's input, of shape (tokens, hidden).
        top_k_index: The chosen experts, of shape (tokens, chosen).
        top_k_weights: Their weights, of the same shape.
    """
    tokens, chosen = top_k_index.shape
    if hidden_states.device.type == "meta":
        return _compute_on_meta(module, hidden_states, top_k_weights)
    routing = _Routing.of(top_k_index, count_experts(module))
    tokens_of: list[int] | None = getattr(module, _TOKENS, None)
    inputs = _Inputs(routing, hidden_states)
    outputs: torch.Tensor | None = None
    with closing(_fetch(module, routing.counts, hidden_states)) as experts:
        for expert, weights in experts:
            if tokens_of is not None:
                tokens_of[expert] += routing.counts[expert]
            output = _compute_expert(module, weights, inputs.rows_of(expert, weights))
            output = _finished(module, output.to(hidden_states.device))
            if outputs is None:
                outputs = output.new_empty(tokens * chosen, output.shape[-1])
            routing.put(outputs, expert, output)
    if outputs is None:
        return torch.zeros_like(hidden_states)
    return _weighted_sum(outputs.view(tokens, chosen, -1), top_k_weights).to(hidden_states.dtype)


def _compute_on_meta(
    module: Any, hidden_states: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Allocate as much as the largest forward pass does: one whose tokens all use one expert."""
    tokens, chosen = top_k_weights.shape
    weights = {name: tensor[0] for name, tensor in expert_tensors(module).items()}
    rows = hidden_states.new_empty(bucket_rows(tokens), hidden_states.shape[1])
    before = hidden_states.new_empty(len(rows), input_width(module))  # the expert before
    outputs = hidden_states.new_empty(tokens, chosen, input_width(module))
    output = _finished(module, _compute_expert(module, weights, rows))
    del before, output
    return _weighted_sum(outputs, top_k_weights).to(hidden_states.dtype)


@dataclass(frozen=True, slots=True)
class _Routing:
    """The rows of each expert.

    Attributes:
        counts: For each expert its number of rows.
        starts: For each expert the place of its first row in `pairs`.
        pairs: Indices of (token, choice) pairs, sorted by expert.
        chosen: Experts that a token uses.
        is_single: Whether every expert takes the one row of one token. A router that looks experts
            up by token may choose one twice.
    """

    counts: list[int]
    starts: list[int]
    pairs: torch.Tensor
    chosen: int
    is_single: bool

    @classmethod
    def of(cls, top_k_index: torch.Tensor, experts: int) -> _Routing:
        """Read back the router's choice, once for a layer."""
        tokens, chosen = top_k_index.shape
        flat = top_k_index.reshape(-1).cpu()  # the one wait for an accelerator
        pairs = torch.argsort(flat, stable=True)
        counts: list[int] = torch.bincount(flat, minlength=experts).tolist()
        starts, at = [], 0
        for count in counts:
            starts.append(at)
            at += count
        pairs = pairs.to(top_k_index.device, non_blocking=True)
        return cls(counts, starts, pairs, chosen, tokens == 1 and max(counts) == 1)

    def rows_of(self, hidden_states: torch.Tensor, expert: int) -> torch.Tensor:
        """Return the rows of one expert, of shape (rows, hidden), padded to a bucket of rows."""
        if self.is_single:
            return hidden_states
        tokens = self._pairs_of(expert) // self.chosen
        rows = _bucket(hidden_states, len(tokens))
        padded = hidden_states.new_zeros(rows, hidden_states.shape[1])
        torch.index_select(hidden_states, 0, tokens, out=padded[: len(tokens)])
        return padded

    def put(self, outputs: torch.Tensor, expert: int, output: torch.Tensor) -> None:
        """Put the output of one expert to the places of its pairs."""
        pairs = self._pairs_of(expert)
        outputs.index_copy_(0, pairs, output[: len(pairs)])

    def _pairs_of(self, expert: int) -> torch.Tensor:
        return self.pairs.narrow(0, self.starts[expert], self.counts[expert])


class _Inputs:
    """The rows of experts, on the device of each expert's weights."""

    def __init__(self, routing: _Routing, hidden_states: torch.Tensor) -> None:
        self._routing, self._hidden_states = routing, hidden_states
        self._beside: tuple[_Routing, torch.Tensor] | None = None

    def rows_of(self, expert: int, weights: ExpertWeights) -> torch.Tensor:
        """Return the rows of one expert, where its weights are; see `_Routing.rows_of`."""
        device = next(iter(weights.values())).device
        if device == self._hidden_states.device:
            return self._routing.rows_of(self._hidden_states, expert)
        if self._beside is None:  # the processor's, beside an accelerator
            pairs = self._routing.pairs.to(device)
            self._beside = replace(self._routing, pairs=pairs), self._hidden_states.to(device)
        routing, hidden_states = self._beside
        return routing.rows_of(hidden_states, expert)


def _bucket(hidden_states: torch.Tensor, rows: int) -> int:
    """Return how many rows are computed for so many.

    oneDNN compiles and keeps a kernel for each number of rows, for half precision on a processor:
    that takes 1.5 ms and 0.75 MiB, and an expert may have any number of rows.
    """
    compiles = hidden_states.device.type == "cpu" and hidden_states.dtype.itemsize == 2
    return bucket_rows(rows) if compiles else rows


def _fetch(module: Any, counts: Sequence[int], hidden_states: torch.Tensor) -> Any:
    source: ExpertSource | None = getattr(module, _SOURCE, None)
    if source is None:
        return _resident(module, counts)
    return source.fetch(counts, hidden_states)


def _resident(module: Any, counts: Sequence[int]) -> Iterator[tuple[int, ExpertWeights]]:
    own = expert_tensors(module)
    for expert, count in enumerate(counts):
        if count:
            yield expert, {name: tensor[expert] for name, tensor in own.items()}


def _compute_expert(module: Any, weights: ExpertWeights, rows: torch.Tensor) -> torch.Tensor:
    inner = _linear(module, weights, first_name(module), rows)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return _linear(module, weights, "down_proj", inner)


def _finished(module: Any, output: torch.Tensor) -> torch.Tensor:
    """Return an expert's output as the sum takes it, on the module's own device."""
    return module.post_expert_norm(output) if module.has_post_expert_norm else output


def _linear(module: Any, weights: ExpertWeights, name: str, rows: torch.Tensor) -> torch.Tensor:
    bias = weights.get(f"{name}_bias")
    parts = packed_parts(module, name)
    if parts:
        products = [KERNELS.linear(rows, part.weight_in(weights), None) for part in parts]
        outputs = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        return outputs if bias is None else outputs.add_(bias)
    weight = weights[name].T if module.is_transposed else weights[name]
    return KERNELS.linear(rows, LinearWeight.plain(weight), bias)


def _weighted_sum(outputs: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over the choices, in float32 if the outputs have less.

    Args:
        outputs: Of shape (tokens, chosen, hidden).
        top_k_weights: Of shape (tokens, chosen).
    """
    total = outputs.new_zeros(
        (outputs.shape[0], outputs.shape[2]),
        dtype=torch.promote_types(outputs.dtype, torch.float32),
    )
    for choice in range(outputs.shape[1]):
        total += outputs[:, choice] * top_k_weights[:, choice, None]
    return total
