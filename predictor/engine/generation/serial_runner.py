"""Run one sequence at a time with the cache that its model makes for itself.

A forward pass gets what `generate` would give it: `prepare_inputs_for_generation` of the model
chooses positions, mask and cache. A model's cache is what its output has under the name of an
input, whatever that name is (``past_key_values``, ``cache_params``, ``state``, ``mems``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.generation.adapters import LoadedAdapters
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.model_tail import ModelTail
from predictor.private.cache_layers import cache_argument, own_cache
from predictor.private.forward_arguments import forward_arguments


@dataclass(slots=True)
class _Sequence:
    """The tokens of a sequence so far, and the model's cache of them by the names of its inputs."""

    tokens: list[int] = field(default_factory=list)
    caches: dict[str, Any] = field(default_factory=dict)


class SerialRunner:
    """Runs one sequence with the cache that its model makes for itself.

    Attributes:
        model: The model.
        adapters: The adapters that sequences may use.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        adapters: LoadedAdapters | None = None,
        positions: int = 1,
    ) -> None:
        """Take any model that generates.

        Args:
            model: The model.
            device: The device of its first part.
            adapters: The adapters that sequences may use, attached to the model.
            positions: Positions whose logits may be in memory at one time.
        """
        self.model: Any = model
        self._device, self.adapters = device, adapters or LoadedAdapters.none()
        self._tail = ModelTail(model, self.adapters, positions)
        self._accepted = forward_arguments(model)
        self._sequences: dict[int, _Sequence] = {}

    @property
    def keys(self) -> frozenset[int]:
        """The sequences whose cache is kept."""
        return frozenset(self._sequences)

    @torch.inference_mode()
    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Return logits of shape (rows, vocabulary)."""
        return torch.cat([self._run(row) for row in rows])

    def truncate(self, key: int, end: int) -> None:
        """Refuse to drop tokens: no sequence has drafts here."""
        raise NotImplementedError

    def holds(self, key: int, /) -> bool:
        """Return whether the cache of a sequence is kept."""
        return key in self._sequences

    def release(self, key: int) -> None:
        """Forget a sequence."""
        self._sequences.pop(key, None)

    def _run(self, row: SequenceChunk) -> torch.Tensor:
        # A sequence is kept again when the forward pass has succeeded.
        sequence = self._sequences.pop(row.key, None) if row.start else self._begin()
        if sequence is None:
            raise RuntimeError("the sequence's cache is gone")
        sequence.tokens += row.tokens
        adapters = self.adapters.used_by([row.adapter], len(row.tokens))
        with adapters, self._tail.recorded([row]) as recorded:
            output = self.model(**self._inputs(sequence, row))
        sequence.caches |= {
            name: value
            for name, value in output.items()
            if name in self._accepted and value is not None
        }
        self._sequences[row.key] = sequence
        logits: torch.Tensor = output.logits[:, -1]
        self._tail.score(row, 0, recorded, logits[0])
        return logits

    def _begin(self) -> _Sequence:
        name = cache_argument(self.model)
        cache = own_cache(self.model) if name else None
        return _Sequence() if cache is None else _Sequence(caches={name: cache})

    def _inputs(self, sequence: _Sequence, row: SequenceChunk) -> dict[str, Any]:
        ids = torch.tensor([sequence.tokens], device=self._device)
        return generation_inputs(
            *(self.model, self._accepted, ids),
            new=len(row.tokens),
            kept_logits=1,
            is_first=not row.start,
            **sequence.caches,
        )


def generation_inputs(
    model: Any,
    accepted: Collection[str],
    ids: torch.Tensor,
    *,
    new: int,
    kept_logits: int,
    is_first: bool = True,
    use_cache: bool = True,
    **caches: Any,
) -> dict[str, Any]:
    """Return what `generate` gives a model in a forward pass over the last tokens of a sequence.

    Positions are among that. Some models, such as RoBERTa's, count others if they get none.

    Args:
        model: The model.
        accepted: The names of its arguments, see `forward_arguments`.
        ids: All tokens so far, of shape (1, tokens).
        new: How many of them are computed.
        kept_logits: Last tokens whose logits are returned, if the model takes that; 0 for all.
        is_first: Whether it is the first forward pass of the sequence.
        use_cache: Whether the model returns a cache.
        caches: The caches of the tokens before, by the names of the model's inputs.
    """
    named = {
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(ids.shape[1], device=ids.device)[None],
    }
    inputs: dict[str, Any] = model.prepare_inputs_for_generation(
        ids,
        next_sequence_length=new,
        is_first_iteration=is_first,
        use_cache=use_cache,
        **{name: value for name, value in named.items() if name in accepted},
        **caches,
    )
    if "logits_to_keep" in accepted:  # some models, such as Bamba, set it themselves
        inputs["logits_to_keep"] = kept_logits
    return inputs
