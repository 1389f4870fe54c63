"""Runs passes of encoder-decoder models: a source is read once, then its reply grows by tokens.

A sequence's tokens are its source and then its decoder's, in one line, so that the scheduler counts
both and need not tell them apart; a source's tokens stand there as negative numbers (`as_source`).

Sequences whose sources are read in one pass stay together, as a cohort: their decoders' tokens are
in step, so nothing of these is padding, and a model may count positions as it likes. Sources are
padded on the right and masked. Each cohort is a pass of the model by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from predictor.engine.generation.kv_cache import Row
from predictor.engine.generation.lockstep_batch import LockstepBatch
from predictor.engine.shape_buckets import bucket_new_tokens
from predictor.profiling.encoder_decoder_probe import MOST_PADDING

_NO_SOURCE = (0,)
"""What a pass without a source reads, which only tests and times the model."""

_PIECE = 16
"""Most tokens of all decoders in one pass, where several are known of each."""


def as_source(tokens: Iterable[int]) -> tuple[int, ...]:
    """Returns tokens as they stand in a sequence whose source they are."""
    return tuple(-1 - token for token in tokens)


@dataclass
class _Read(BaseModelOutput):
    """What an encoder made, with what mixtures of experts look for besides."""

    router_logits: Any = None


class EncoderDecoderRunner:
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
        self._cohorts: dict[int, LockstepBatch] = {}

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Returns logits of shape (rows, vocabulary)."""
        for row in rows:
            if not row.start:
                self.release(row.key)
            elif row.key not in self._cohorts:
                raise RuntimeError("the sequence's cache is gone")
        self._shrink()
        found: dict[int, torch.Tensor] = {}
        running = [row for row in rows if row.start]
        for group in _grouped(running, self._goes_on_with):
            found |= dict(zip([row.key for row in group], self._go_on(group), strict=True))
        for group in self._beginning([row for row in rows if not row.start]):
            found |= dict(zip([row.key for row in group], self._begin(group), strict=True))
        return torch.stack([found[row.key] for row in rows])

    def release(self, key: int) -> None:
        """Forgets a sequence; its cohort's memory is made less before the next pass."""
        self._cohorts.pop(key, None)

    def _shrink(self) -> None:
        for cohort in {id(cohort): cohort for cohort in self._cohorts.values()}.values():
            left = [key for key in cohort.keys if self._cohorts.get(key) is cohort]
            if len(left) < len(cohort.keys):
                self._part(cohort, [left])

    def _part(self, cohort: LockstepBatch, groups: list[list[int]]) -> None:
        # Where this fails, nobody goes on with what is left of the cohort.
        for group in groups:
            for key in group:
                del self._cohorts[key]
        for group, made in zip(groups, cohort.part(groups), strict=True):
            self._cohorts |= dict.fromkeys(group, made)

    def _beginning(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Rows in groups that begin together: with decoders in step, and with little padding."""
        groups: list[list[Row]] = []
        for some in _grouped(rows, lambda row: row.key if self._alone else len(_target(row))):
            groups.append([])
            for row in sorted(some, key=lambda row: len(row.tokens)):
                sizes = [len(_source(one)) for one in (*groups[-1], row)]
                if len(sizes) * sizes[-1] > (1 + MOST_PADDING) * sum(sizes):
                    groups.append([])
                groups[-1].append(row)
        return groups

    def _begin(self, rows: Sequence[Row]) -> torch.Tensor:
        sources = [_source(row) for row in rows]
        longest = max(map(len, sources))
        columns = bucket_new_tokens(longest) if self._device.type == "cpu" else longest
        ids = torch.full((len(rows), columns), self._model.config.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for index, source in enumerate(sources):
            ids[index, : len(source)] = torch.tensor(source)
            mask[index, : len(source)] = 1
        mask, targets = mask.to(self._device), self._targets(rows)
        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=mask,
            decoder_input_ids=targets[:, :1],
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:, -1]
        known = targets.shape[1]
        before = {row.key: row.end - known for row in rows}
        states = output.encoder_last_hidden_state
        cohort = LockstepBatch(list(before), output.past_key_values, states, mask, 1, before)
        self._cohorts |= dict.fromkeys(before, cohort)
        piece = max(1, _PIECE // len(rows))
        for first in range(1, known, piece):
            logits = self._feed(cohort, targets[:, first : first + piece])
        return logits

    def _goes_on_with(self, row: Row) -> Hashable:
        cohort = self._cohorts[row.key]
        return id(cohort), row.start - cohort.sources[row.key]

    def _go_on(self, rows: Sequence[Row]) -> torch.Tensor:
        """Feeds each decoder its next token.

        Where a pass failed, of this cohort or of another one beside it, it is run again in halves;
        the cohort may have its tokens already, or some layers of it may.
        """
        by_key = {row.key: row for row in rows}
        cohort = self._cohorts[rows[0].key]
        others = [key for key in cohort.keys if key not in by_key]
        if others:
            self._part(cohort, [list(by_key), others])
            cohort = self._cohorts[rows[0].key]
        cohort.go_back(rows[0].start - cohort.sources[rows[0].key])
        logits = self._feed(cohort, self._targets([by_key[key] for key in cohort.keys]))
        return logits[[cohort.keys.index(key) for key in by_key]]

    def _feed(self, cohort: LockstepBatch, targets: torch.Tensor) -> torch.Tensor:
        output = self._model(
            encoder_outputs=_Read(last_hidden_state=cohort.states),
            attention_mask=cohort.mask,
            decoder_input_ids=targets,
            past_key_values=cohort.cache,
            use_cache=True,
        )
        cohort.length += targets.shape[1]
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _targets(self, rows: Sequence[Row]) -> torch.Tensor:
        return torch.tensor([_target(row) for row in rows], device=self._device)


def _source(row: Row) -> list[int]:
    return [-1 - token for token in row.tokens if token < 0] or list(_NO_SOURCE)


def _target(row: Row) -> list[int]:
    return [token for token in row.tokens if token >= 0]


def _grouped(rows: Iterable[Row], by: Callable[[Row], Hashable]) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(by(row), []).append(row)
    return list(groups.values())
