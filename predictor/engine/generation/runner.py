"""Run one forward pass of the model: new tokens of each row in, the logits after its last one out.

`BatchRunner` is for all architectures that can be batched, `SerialRunner` for the others: it keeps
the model's own cache of the one sequence that runs. Neither may be called from two threads at a
time, because Accelerate's hooks are not thread-safe.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.kv_cache import PagedKVCache, SequenceChunk


class Runner(Protocol):
    """The interface of all runners of generation."""

    @property
    def model(self) -> Any:
        """The model."""
        ...

    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Return logits of shape (rows, vocabulary)."""
        ...

    def release(self, key: int) -> None:
        """Forget a sequence."""
        ...


class BatchRunner:
    """Runs rows of any lengths in one padded batch over a pool of KV pages.

    Attributes:
        model: The model.
        cache: The pool.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        layers: int,
        pages: int,
        max_length: int,
    ) -> None:
        """Take a model that can be batched, see `batchability`.

        Args:
            model: The model.
            device: The device of its first part.
            layers: How many layers keep keys and values.
            pages: Tokens that the pool has pages for, including the padding.
            max_length: Tokens of the longest sequence.
        """
        self.model: Any = model
        self.cache = PagedKVCache(layers, pages, max_length)
        self._device = device
        self._accepted = inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Return logits of shape (rows, vocabulary)."""
        layout = self.cache.lay_out(rows, bucket_shapes=self._device.type == "cpu")
        ids = torch.zeros(len(rows), layout.new, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, layout.new - len(row.tokens) :] = torch.tensor(row.tokens)
        columns = torch.arange(layout.past + layout.new) - (layout.past + layout.new)
        positions = (columns + layout.lengths[:, None]).clamp_(min=-1)
        extra: dict[str, Any] = {}
        if "position_ids" in self._accepted:
            extra["position_ids"] = positions[:, layout.past :].clamp(min=0).to(self._device)
        if "logits_to_keep" in self._accepted:
            extra["logits_to_keep"] = 1
        output = self.model(
            input_ids=ids.to(self._device),
            attention_mask=(positions >= 0).long().to(self._device),
            past_key_values=self.cache,
            use_cache=True,
            **extra,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def release(self, key: int) -> None:
        """Free the KV pages of a sequence."""
        self.cache.release(key)


class SerialRunner:
    """Runs one sequence with the cache that its model makes for itself.

    Attributes:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel, *, device: torch.device) -> None:
        """Take any model that generates.

        Args:
            model: The model.
            device: The device of its first part.
        """
        self.model: Any = model
        self._device = device
        accepted = inspect.signature(model.forward).parameters
        self._name = "past_key_values" if "past_key_values" in accepted else "cache_params"
        self._keeps_logits = "logits_to_keep" in accepted
        self._caches: dict[int, Any] = {}

    @property
    def keys(self) -> frozenset[int]:
        """The sequences whose cache is kept."""
        return frozenset(self._caches)

    @torch.inference_mode()
    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Return logits of shape (rows, vocabulary)."""
        return torch.cat([self._run(row) for row in rows])

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._caches.pop(key, None)

    def _run(self, row: SequenceChunk) -> torch.Tensor:
        # A cache that a failed forward pass may have changed is not used again.
        past = self._caches.pop(row.key, None)
        if row.start and past is None:
            raise RuntimeError("the sequence's cache is gone")
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_logits else {}
        output = self.model(
            input_ids=torch.tensor([list(row.tokens)], device=self._device),
            use_cache=True,
            **{self._name: past},
            **extra,
        )
        self._caches[row.key] = getattr(output, self._name)
        logits: torch.Tensor = output.logits[:, -1]
        return logits
