"""Run one forward pass of the model: new tokens of each row in, the logits after its last one out.

`BatchRunner` is for all architectures that can be batched, `SerialRunner` for the others. Neither
may be called from two threads at a time, because Accelerate's hooks are not thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.kv_accounting import BLOCK_TOKENS
from predictor.engine.generation.kv_cache import PagedKVCache
from predictor.engine.generation.latent_rows import attend_to_latents
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.model_tail import ModelTail
from predictor.engine.generation.recurrences import STEPS
from predictor.private.cache_layers import CacheLayer, cache_argument
from predictor.private.forward_arguments import forward_arguments
from predictor.private.recurrences import StepFunctions
from predictor.shape_buckets import bucket_new_tokens


class Runner(Protocol):
    """The interface of all runners of generation."""

    @property
    def model(self) -> Any:
        """The model."""
        ...

    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Return the logits after the last tokens of each row: as many for each row.

        Returns:
            Of shape (rows x columns, vocabulary). There is one column if no row has drafts, else at
            least one for each draft of a row and one for its last known token. They end together.
        """
        ...

    def truncate(self, key: int, end: int) -> None:
        """Drop what is kept of a sequence's tokens from a position on, which were drafts."""
        ...

    def holds(self, key: int, /) -> bool:
        """Return whether a sequence can be continued; else its cache is spoilt."""
        ...

    def release(self, key: int) -> None:
        """Forget a sequence."""
        ...


class BatchRunner:
    """Runs rows in one batch over a pool of KV pages and slots for states.

    Attributes:
        model: The model.
        cache: The pool.
        adapters: The adapters that rows may use.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        layers: Sequence[CacheLayer],
        pages: int,
        max_length: int,
        slots: int = 0,
        window_pages: int = 0,
        adapters: LoadedAdapters | None = None,
        positions: int = 1,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        """Take a model that can be batched, see `batchability`.

        Args:
            model: The model.
            device: The device of its first part.
            layers: What each of its layers keeps.
            pages: Tokens that the pool has pages for, including the padding; 0 if none is kept.
            max_length: Tokens of the longest sequence.
            slots: Sequences that the pool has slots for, if layers keep a state.
            window_pages: Tokens that there are pages for in layers that attend to a window; 0 if
                they keep whole sequences.
            adapters: The adapters that rows may use, attached to the model.
            positions: Positions whose logits may be in memory at one time.
            block_tokens: Tokens that sequences share or do not share as a whole.
        """
        self.model: Any = model
        attend_to_latents(model)
        self.cache = PagedKVCache(
            *(layers, pages, max_length),
            slots=slots,
            window_pages=window_pages,
            block_tokens=block_tokens,
        )
        self._device, self.adapters = device, adapters or LoadedAdapters.none()
        self._tail = ModelTail(model, self.adapters, positions)
        self._accepted = forward_arguments(model)
        self._name = cache_argument(model)
        # A GPU may have kernels of its own for these.
        self._steps = StepFunctions(model, STEPS if device.type == "cpu" else {})

    @torch.inference_mode()
    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Return the logits after the last tokens of each row, see `Runner`."""
        logits = self._run_states(rows) if self.cache.keeps_state else self._run(rows)
        self.cache.forget(rows)
        return logits

    def truncate(self, key: int, end: int) -> None:
        """Free the pages of a sequence's tokens from a position on."""
        self.cache.truncate(key, end)

    def holds(self, key: int, /) -> bool:
        """Return whether what is kept of a sequence is still there, if it can be lost at all."""
        return self.cache.holds(key)

    def release(self, key: int) -> None:
        """Free the KV pages and the slot of a sequence."""
        self.cache.release(key)

    def _run_states(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        slots = [self.cache.states.take(row.key) for row in rows]
        order = sorted(range(len(rows)), key=slots.__getitem__)  # consecutive slots need no copy
        try:
            with self._steps.replaced():
                logits = self._run([rows[index] for index in order])
        except BaseException:
            self.cache.states.fail()
            raise
        self.cache.states.finish()
        if order == sorted(order):
            return logits
        return logits[torch.tensor(order).argsort().to(logits.device)]

    def _run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        layout = self.cache.lay_out(rows, bucket_shapes=self._device.type == "cpu")
        kept = self._kept_logits(rows)
        ids = torch.zeros(len(rows), layout.new, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, layout.new - len(row.tokens) :] = torch.tensor(row.tokens)
        columns = torch.arange(layout.past + layout.new) - (layout.past + layout.new)
        positions = (columns + layout.lengths[:, None]).clamp_(min=-1)
        extra: dict[str, Any] = {self._name: self.cache}
        if "position_ids" in self._accepted:
            extra["position_ids"] = positions[:, layout.past :].clamp(min=0).to(self._device)
        if "logits_to_keep" in self._accepted:
            extra["logits_to_keep"] = kept
        adapters = self.adapters.used_by([row.adapter for row in rows], layout.new)
        with adapters, self._tail.recorded(rows) as recorded:
            output = self.model(
                input_ids=ids.to(self._device),
                attention_mask=self._mask(positions),
                use_cache=True,
                **extra,
            )
        for index, row in enumerate(rows):
            self._tail.score(row, index, recorded, output.logits[index, -1])
        logits: torch.Tensor = output.logits[:, -kept:].flatten(0, 1)
        return logits

    def _kept_logits(self, rows: Sequence[SequenceChunk]) -> int:
        """Return of how many last columns logits are needed, in few shapes on a processor."""
        most = 1 + max(row.drafts for row in rows)
        return bucket_new_tokens(most) if self._device.type == "cpu" else most

    def _mask(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Return which columns hold tokens, of shape (rows, columns).

        If no token is kept there is no mask without padding, as `generate` does it.
        """
        mask = (positions >= 0).long()
        if not self.cache.keeps_tokens and bool(mask.all()):
            return None
        return mask.to(self._device)
