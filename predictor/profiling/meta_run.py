"""Run a generating model on the meta device, and note what it keeps and how much it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from predictor.live_bytes import LiveBytes
from predictor.private.cache_layers import (
    cache_argument,
    cache_layers,
    own_cache,
    whole_sequence_cache,
)
from predictor.private.forward_arguments import forward_arguments
from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.meta_device import DeviceBehavior
from predictor.profiling.sequence_cache import KeptTensors, in_modules

_OPTIONS = {"use_cache": True, "use_mems": True, "logits_to_keep": 1}
"""Arguments that a model gets if it takes them."""


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """The result of a forward pass on the meta device.

    Attributes:
        cache: The cache that the model was given or returned; None without one.
        kept: The tensors that are kept of the sequences.
        peaks: Most bytes alive by scope, without the weights, buffers, and what is kept.
        operations: How many operations of torch ran.
    """

    cache: Any
    kept: KeptTensors
    peaks: Mapping[str, int]
    operations: int

    @property
    def peak(self) -> int:
        """Most bytes alive, without the weights, buffers, and what is kept."""
        return max(0, *self.peaks.values())


class MetaRun:
    """Forward passes of one model."""

    def __init__(
        self, model: PreTrainedModel, blocks: Sequence[nn.Module], deduplicator: BlockDeduplicator
    ) -> None:
        """Take a model.

        Args:
            model: The model, on the meta device.
            blocks: Its blocks.
            deduplicator: Its blocks by kind, a few of which are executed.
        """
        self._model = model
        self._blocks = blocks
        self._deduplicator = deduplicator
        self._weights = {weight.untyped_storage() for weight in model.parameters()}
        accepted = forward_arguments(model)
        self._accepted = accepted
        self._name = cache_argument(model)
        self._options = {name: value for name, value in _OPTIONS.items() if name in accepted}
        self._untouched = [tensor for own in in_modules(blocks) for tensor in own]

    def empty(self) -> Cache | None:
        """Return an empty cache of whole sequences; None if the model cannot use one."""
        if not self._name or own_cache(self._model) is None:
            return None
        return whole_sequence_cache(self._model)

    def windows(self, longest: int) -> list[int]:
        """Return the window of each layer of the cache, 0 without one that sequences outgrow."""
        return [layer.window_within(longest) for layer in cache_layers(self._model)]

    def run(
        self,
        rows: int,
        tokens: int,
        past: Any = None,
        *,
        most_operations: int | None = None,
        by_module: bool = False,
    ) -> ForwardPass:
        """Run so many new tokens of each row, without a mask, whose values meta lacks.

        Args:
            rows: The number of sequences.
            tokens: New tokens of each.
            past: The cache that the pass extends; None for one that the model makes.
            most_operations: The most operations that may run; None for any number.
            by_module: Whether peaks are by module; else they are one number.

        Raises:
            TooManyOperations: More than that would run.
        """
        if past is None and self._name:
            past = own_cache(self._model)
        before = {id(tensor) for tensor in self._untouched}
        with LiveBytes(self._weights, most_operations=most_operations) as live:
            live.count(self._model.buffers())
            live.count(self._untouched)
            buffers = live.now
            live.count(KeptTensors.of([past], len(self._blocks)).tensors())
            live.count(tensor for own in in_modules(self._blocks) for tensor in own)
            scopes = _by_module(self._model, live) if by_module else contextlib.nullcontext()
            with self._deduplicator.deduplicated(live), scopes:
                caches = self._call(rows, tokens, past)
        states = [[x for x in own if id(x) not in before] for own in in_modules(self._blocks)]
        kept = KeptTensors.of([*caches, states], len(self._blocks))
        held = buffers + sum(tensor.nbytes for tensor in kept.tensors())
        peaks = {scope: peak - held for scope, peak in live.peaks.items()}
        return ForwardPass(caches[0] if caches else None, kept, peaks, live.operations)

    def _call(self, rows: int, tokens: int, past: Any) -> list[Any]:
        """Return the caches: what is returned under the name of an input, else what was given."""
        ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
        given = {} if past is None else {self._name: past}
        called: Any = self._model
        with torch.no_grad(), DeviceBehavior():
            output = called(input_ids=ids, **given, **self._options)
        returned = [output[name] for name in output.keys() if name in self._accepted]  # noqa: SIM118
        return returned or list(given.values())


@contextlib.contextmanager
def _by_module(model: nn.Module, live: LiveBytes) -> Iterator[None]:
    """Note peaks under the name of the innermost module that runs."""
    outer: list[str] = []

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            outer.append(live.scope)
            live.scope = name

        return hook

    def leave(*_: Any) -> None:
        live.scope = outer.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
