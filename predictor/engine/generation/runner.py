"""Runs one pass of the model: rows of new tokens in, the logits after each row's last token out.

Two ways: `BatchRunner` for all architectures that can be batched, `SerialRunner` for the others,
which keeps the model's own cache of the one sequence that runs. Neither may be called from two
threads at a time: Accelerate's hooks are not thread-safe.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.kv_cache import Row, SlotCache


class Runner(Protocol):
    """What the engine needs of either."""

    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Returns logits of shape (rows, vocabulary)."""
        ...

    def release(self, key: int) -> None:
        """Forgets a sequence."""
        ...


class BatchRunner:
    """Runs rows of any lengths in one padded batch over a pool of token slots."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        layers: int,
        kv_tokens: int,
        max_length: int,
    ) -> None:
        """Takes a model that can be batched, see `capability`.

        Args:
            model: The model.
            device: Where its first part executes.
            layers: How many layers keep keys and values.
            kv_tokens: Tokens that the cache holds, one for the padding among them.
            max_length: Tokens of the longest sequence.
        """
        self._model: Any = model
        self._device = device
        self._accepted = inspect.signature(model.forward).parameters
        self._cache = SlotCache(layers, kv_tokens, max_length)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Returns logits of shape (rows, vocabulary)."""
        layout = self._cache.lay_out(rows, bucket_shapes=self._device.type == "cpu")
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
        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=(positions >= 0).long().to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            **extra,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def release(self, key: int) -> None:
        """Takes a sequence's slots back."""
        self._cache.release(key)


class SerialRunner:
    """Runs one sequence with the cache that its model makes for itself."""

    def __init__(self, model: PreTrainedModel, *, device: torch.device) -> None:
        """Takes any model that generates.

        Args:
            model: The model.
            device: Where its first part executes.
        """
        self._model: Any = model
        self._device = device
        accepted = inspect.signature(model.forward).parameters
        self._name = "past_key_values" if "past_key_values" in accepted else "cache_params"
        self._takes_one = "logits_to_keep" in accepted
        self._caches: dict[int, Any] = {}

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Returns logits of shape (rows, vocabulary)."""
        return torch.cat([self._run(row) for row in rows])

    def release(self, key: int) -> None:
        """Forgets a sequence."""
        self._caches.pop(key, None)

    def _run(self, row: Row) -> torch.Tensor:
        # A cache that a failed pass may have changed is not used again.
        past = self._caches.pop(row.key, None)
        if row.start and past is None:
            raise RuntimeError("the sequence's cache is gone")
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._takes_one else {}
        output = self._model(
            input_ids=torch.tensor([list(row.tokens)], device=self._device),
            use_cache=True,
            **{self._name: past},
            **extra,
        )
        self._caches[row.key] = getattr(output, self._name)
        logits: torch.Tensor = output.logits[:, -1]
        return logits
