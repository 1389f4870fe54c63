"""Runs passes of encoder-decoder models: a source is read once, then its reply grows by tokens.

A sequence's tokens are its source and then its decoder's, in one line, so that the scheduler counts
both and need not tell them apart; a source's tokens stand there as negative numbers (`as_source`).

Sequences whose sources are read in one pass stay together, as a *cohort*: their decoders' tokens
are in step, so nothing of these is padding, and a model may count positions as it likes. Sources
are padded on the right and masked. A cohort keeps what transformers caches, as one batch; who ends
leaves it at the next pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from predictor.engine.cache import Row
from predictor.engine.shapes import new_columns

_T = TypeVar("_T")

_NO_SOURCE = (0,)
"""What a pass without a source reads, which only tests and times the model."""


def as_source(tokens: Iterable[int]) -> tuple[int, ...]:
    """Returns tokens as they stand in a sequence whose source they are."""
    return tuple(-1 - token for token in tokens)


@dataclass(slots=True)
class _Cohort:
    """Sequences in step.

    Attributes:
        keys: Theirs, in the order of the rows.
        cache: What the decoder keeps.
        states: What the encoder made, of shape (rows, source, hidden).
        mask: 1 where a source has a token, of shape (rows, source).
        length: Tokens of each decoder that are cached, as far as passes have come to an end.
        ends: For each key how many tokens of its line those are.
    """

    keys: list[int]
    cache: EncoderDecoderCache
    states: torch.Tensor
    mask: torch.Tensor
    length: int
    ends: dict[int, int]


class PairedRunner:
    """Runs rows of any lengths; prompts have to come whole."""

    def __init__(
        self, model: PreTrainedModel, *, device: torch.device, alone: bool = False
    ) -> None:
        """Takes a model with an encoder and a decoder.

        Args:
            model: The model.
            device: Where its first part executes.
            alone: Whether every sequence is to be computed by itself.
        """
        self._model: Any = model
        self._device = device
        self._alone = alone
        self._cohorts: dict[int, _Cohort] = {}

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Returns logits of shape (rows, vocabulary)."""
        places = {row.key: place for place, row in enumerate(rows)}
        found: dict[int, torch.Tensor] = {}
        for row in rows:
            if not row.start:
                self.release(row.key)
        new = [row for row in rows if row.key not in self._cohorts]
        if any(row.start for row in new):
            raise RuntimeError("the sequence's cache is gone")
        for group in _grouped(new, self._begins_with):
            logits = self._begin(group)
            found |= {places[row.key]: own for row, own in zip(group, logits, strict=True)}
        running = [row for row in rows if row.start]
        for group in _grouped(running, self._goes_on_with):
            logits = self._go_on(group)
            found |= {places[row.key]: own for row, own in zip(group, logits, strict=True)}
        return torch.stack([found[place] for place in range(len(rows))])

    def release(self, key: int) -> None:
        """Forgets a sequence; its cohort's memory is made less at the next pass."""
        self._cohorts.pop(key, None)

    def _begins_with(self, row: Row) -> Hashable:
        """What is common to those that may begin together: how many tokens decoders begin with."""
        return row.key if self._alone else sum(token >= 0 for token in row.tokens)

    def _goes_on_with(self, row: Row) -> Hashable:
        cohort = self._cohorts[row.key]
        return id(cohort), cohort.ends[row.key] - row.start, len(row.tokens)

    def _begin(self, rows: Sequence[Row]) -> torch.Tensor:
        sources = [[-1 - token for token in row.tokens if token < 0] for row in rows]
        sources = [source or list(_NO_SOURCE) for source in sources]
        longest = max(map(len, sources))
        columns = new_columns(longest) if self._device.type == "cpu" else longest
        ids = torch.full((len(rows), columns), self._model.config.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for index, source in enumerate(sources):
            ids[index, : len(source)] = torch.tensor(source)
            mask[index, : len(source)] = 1
        mask, targets = mask.to(self._device), self._decoders_ids(rows)
        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=mask,
            decoder_input_ids=targets,
            past_key_values=_cache(DynamicCache(), DynamicCache()),
            use_cache=True,
        )
        states = output.encoder_last_hidden_state
        keys = [row.key for row in rows]
        ends = {row.key: row.end for row in rows}
        cohort = _Cohort(keys, output.past_key_values, states, mask, targets.shape[1], ends)
        self._cohorts |= dict.fromkeys(keys, cohort)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _go_on(self, rows: Sequence[Row]) -> torch.Tensor:
        cohort = self._cohort_of([row.key for row in rows])
        # A pass that failed, of this cohort or another beside it, is run again in halves; all
        # layers or some of them have then taken its tokens.
        length = cohort.length - (cohort.ends[rows[0].key] - rows[0].start)
        _cut(cohort.cache.self_attention_cache, length)
        targets = self._decoders_ids(rows)
        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=cohort.states),
            attention_mask=cohort.mask,
            decoder_input_ids=targets,
            past_key_values=cohort.cache,
            use_cache=True,
        )
        cohort.length = length + targets.shape[1]
        cohort.ends = {row.key: row.end for row in rows}
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _decoders_ids(self, rows: Sequence[Row]) -> torch.Tensor:
        targets = [[token for token in row.tokens if token >= 0] for row in rows]
        return torch.tensor(targets, device=self._device)

    def _cohort_of(self, keys: list[int]) -> _Cohort:
        """The cohort of exactly these sequences; they leave the others where they are more."""
        whole = self._cohorts[keys[0]]
        if whole.keys == keys:
            return whole
        others = [key for key in whole.keys if key not in keys and self._cohorts.get(key) is whole]
        for some in (others, keys):
            if some:
                self._cohorts |= dict.fromkeys(some, _selected(whole, some))
        return self._cohorts[keys[0]]


def _grouped(rows: Iterable[Row], by: Callable[[Row], Hashable]) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(by(row), []).append(row)
    return list(groups.values())


def _selected(cohort: _Cohort, keys: list[int]) -> _Cohort:
    """Some of a cohort, by itself, with no more columns than their sources need."""
    rows = torch.tensor([cohort.keys.index(key) for key in keys], device=cohort.mask.device)
    columns = int(cohort.mask[rows].sum(dim=1).max())
    own, cross = cohort.cache.self_attention_cache, cohort.cache.cross_attention_cache
    return _Cohort(
        keys,
        _cache(_rows_of(own, rows), _rows_of(cross, rows, columns)),
        cohort.states[rows.to(cohort.states.device), :columns],
        cohort.mask[rows, :columns],
        cohort.length,
        {key: cohort.ends[key] for key in keys},
    )


def _cache(own: DynamicCache, cross: DynamicCache) -> EncoderDecoderCache:
    return EncoderDecoderCache(own, cross)


def _rows_of(cache: Any, rows: torch.Tensor, columns: int | None = None) -> DynamicCache:
    found = DynamicCache()
    for index, layer in enumerate(cache.layers):
        there = rows.to(layer.keys.device)
        keys, values = (kept[there][:, :, :columns] for kept in (layer.keys, layer.values))
        found.update(keys, values, index)
    return found


def _cut(cache: Any, length: int) -> None:
    """Forgets what is cached beyond a length."""
    for layer in cache.layers:
        if layer.keys.shape[2] > length:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
