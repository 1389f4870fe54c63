"""Run encoder-decoder models: a source is encoded once, then its reply grows token by token.

The tokens of a sequence are those of its source followed by those of its decoder, so that the
scheduler counts both and need not tell them apart. Tokens of the source stand there as negative
numbers (`sampling_params.as_source`).

Sequences whose sources are encoded in one forward pass stay together as a `LockstepBatch`. Their
decoders are in step. Sources are padded on the right and masked. Each lockstep batch is a forward
pass by itself. Batches join as soon as that takes little padding: on the left of the decoders that
began later, masked, with positions of their own (`decoder_padding`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from predictor.engine.generation.decoder_padding import DecoderPadding, find_decoder
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.lockstep_batch import LockstepBatch, join, padded_columns
from predictor.private.attention_types import keep_attention_type
from predictor.profiling.encoder_decoder_probe import MOST_PADDING
from predictor.shape_buckets import bucket_new_tokens

_NO_SOURCE = (0,)
"""The source of a forward pass that has none, which only tests and times the model."""

_PIECE = 16
"""Most tokens of all decoders in one forward pass, if several of each are known."""


@dataclass
class _EncoderOutput(BaseModelOutput):
    """An encoder's output, with the attribute that mixtures of experts look for besides."""

    router_logits: Any = None


class EncoderDecoderRunner:
    """Runs rows of any lengths. A prompt must come in one chunk.

    Attributes:
        model: The model.
        batches: The lockstep batch of each sequence.
        most_padding: Most padding of batches that join, as a fraction of their tokens; None if none
            may join, which the start finds out.
        piece: Most tokens of all decoders in one forward pass, if several of each are known. The
            start sets it to 1 for a model that computes several tokens otherwise than one by one.
        adds_column: Whether a padded forward pass of one token gets a second column, which is
            forgotten. LED's decoder reads its mask only if it has several tokens.
    """

    def __init__(
        self, model: PreTrainedModel, *, device: torch.device, alone: bool = False
    ) -> None:
        """Take a model with an encoder and a decoder.

        Args:
            model: The model.
            device: The device of its first part.
            alone: Whether to compute every sequence by itself.
        """
        self.model: Any = model
        self.batches: dict[int, LockstepBatch] = {}
        self._device = device
        sees_columns = keep_attention_type(model)
        self._alone = alone or sees_columns
        self._pads = device.type == "cpu" and not sees_columns
        self.most_padding: float | None = None if self._alone else MOST_PADDING
        self.piece, self.adds_column = _PIECE, False
        self._encoder: Any = self.model.get_encoder()
        self._padding = DecoderPadding(find_decoder(model))

    @torch.inference_mode()
    def run(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Return logits of shape (rows, vocabulary)."""
        for row in rows:
            if not row.start:
                self.release(row.key)
            elif row.key not in self.batches:
                raise RuntimeError("the sequence's cache is gone")
        self._shrink()
        logits: dict[int, torch.Tensor] = {}
        running = [row for row in rows if row.start]
        self._join(running)
        for group in _group(running, self._lockstep):
            logits |= dict(zip([row.key for row in group], self._continue(group), strict=True))
        for group in self._group_new([row for row in rows if not row.start]):
            logits |= dict(zip([row.key for row in group], self._begin(group), strict=True))
        return torch.stack([logits[row.key] for row in rows])

    def truncate(self, key: int, end: int) -> None:
        """Refuse to drop tokens: no sequence has drafts here."""
        raise NotImplementedError

    def holds(self, key: int, /) -> bool:
        """Return whether a sequence can be continued; else memory ran out as batches changed."""
        return key in self.batches

    def release(self, key: int) -> None:
        """Forget a sequence. Its batch shrinks before the next forward pass."""
        self.batches.pop(key, None)

    def _shrink(self) -> None:
        for batch in {id(batch): batch for batch in self.batches.values()}.values():
            left = [key for key in batch.keys if self.batches.get(key) is batch]
            if len(left) < len(batch.keys):
                self._split(batch, [left])

    def _split(self, batch: LockstepBatch, groups: list[list[int]]) -> None:
        # If this fails, no sequence continues with the rest of the batch.
        for group in groups:
            for key in group:
                del self.batches[key]
        for group, part in zip(groups, batch.split(groups), strict=True):
            self.batches |= dict.fromkeys(group, part)

    def _join(self, rows: Sequence[SequenceChunk]) -> None:
        """Join batches of which every sequence continues, the longest replies first."""
        starts = {row.key: row.start for row in rows}
        batches = {id(batch): batch for batch in (self.batches[row.key] for row in rows)}.values()
        if len(batches) < 2 or self.most_padding is None:
            return
        joined: list[LockstepBatch] = []
        for batch in sorted(batches, key=lambda batch: -batch.length):
            is_whole = all(
                starts.get(key, 0) - batch.offsets[key] == batch.length for key in batch.keys
            )
            columns, tokens = padded_columns([*joined, batch])
            if is_whole and columns <= (1 + self.most_padding) * tokens:
                joined.append(batch)
        if len(joined) > 1:
            keys = [key for batch in joined for key in batch.keys]
            for key in keys:  # if this fails, no sequence continues with what is left
                del self.batches[key]
            for batch in joined:
                batch.truncate(batch.length)
            self.batches |= dict.fromkeys(keys, join(joined))

    def _group_new(self, rows: Sequence[SequenceChunk]) -> list[list[SequenceChunk]]:
        """Rows in groups that begin together: with decoders in step, and with little padding."""
        groups: list[list[SequenceChunk]] = []
        for some in _group(rows, lambda row: row.key if self._alone else len(_target(row))):
            groups.append([])
            for row in sorted(some, key=lambda row: len(row.tokens)):
                sizes = [len(_source(other)) for other in (*groups[-1], row)]
                if len(sizes) * sizes[-1] > (1 + MOST_PADDING) * sum(sizes):
                    groups.append([])
                groups[-1].append(row)
        return groups

    def _begin(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Encode the sources, and compute all known tokens of the decoder."""
        ids, mask = self._sources(rows)
        targets = self._targets(rows)
        # As in `generate`, the encoder runs by itself: Switch's takes no argument of a decoder.
        states = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        length = targets.shape[1]
        offsets = {row.key: row.end - length for row in rows}
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        pads = [0] * len(rows)
        lengths = [len(_source(row)) for row in rows]
        batch = LockstepBatch(list(offsets), cache, states, mask, 0, offsets, pads, lengths)
        logits = self._decode(batch, targets[:, :1])
        self.batches |= dict.fromkeys(offsets, batch)
        piece = max(1, self.piece // len(rows))
        for first in range(1, length, piece):
            logits = self._decode(batch, targets[:, first : first + piece])
        return logits

    def _lockstep(self, row: SequenceChunk) -> Hashable:
        """A key that rows share which continue together."""
        batch = self.batches[row.key]
        return id(batch), row.start - batch.offsets[row.key]

    def _continue(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        """Compute the next token of each decoder.

        If a forward pass failed, of this batch or of another one beside it, it is run again in
        halves. Some layers of the batch, or all, may have its tokens already.
        """
        by_key = {row.key: row for row in rows}
        batch = self.batches[rows[0].key]
        others = [key for key in batch.keys if key not in by_key]
        if others:
            self._split(batch, [list(by_key), others])
            batch = self.batches[rows[0].key]
        batch.truncate(rows[0].start - batch.offsets[rows[0].key])
        logits = self._decode(batch, self._targets([by_key[key] for key in batch.keys]))
        return logits[[batch.keys.index(key) for key in by_key]]

    def _decode(self, batch: LockstepBatch, targets: torch.Tensor) -> torch.Tensor:
        end = batch.length + targets.shape[1]
        if self.adds_column and any(batch.pads) and targets.shape[1] == 1:
            targets = targets.expand(-1, 2)
        padding = batch.decoder_mask(targets.shape[1])
        extra = {} if padding is None else {"decoder_attention_mask": padding}
        self._padding.set(batch.pads, padding)
        try:
            output = self.model(
                encoder_outputs=_EncoderOutput(last_hidden_state=batch.states),
                attention_mask=batch.mask,
                decoder_input_ids=targets,
                past_key_values=batch.cache,
                use_cache=True,
                **extra,
            )
        finally:
            self._padding.clear()
        logits: torch.Tensor = output.logits[:, end - batch.length - 1]
        batch.truncate(end)
        return logits

    def _sources(self, rows: Sequence[SequenceChunk]) -> tuple[torch.Tensor, torch.Tensor]:
        """The sources' tokens and their mask, each of shape (rows, columns)."""
        sources = [_source(row) for row in rows]
        longest = max(map(len, sources))
        columns = bucket_new_tokens(longest) if self._pads else longest
        ids = torch.full((len(rows), columns), getattr(self.model.config, "pad_token_id", 0) or 0)
        mask = torch.zeros_like(ids)
        for index, source in enumerate(sources):
            ids[index, : len(source)] = torch.tensor(source)
            mask[index, : len(source)] = 1
        return ids.to(self._device), mask.to(self._device)

    def _targets(self, rows: Sequence[SequenceChunk]) -> torch.Tensor:
        return torch.tensor([_target(row) for row in rows], device=self._device)


def _source(row: SequenceChunk) -> list[int]:
    return [-1 - token for token in row.tokens if token < 0] or list(_NO_SOURCE)


def _target(row: SequenceChunk) -> list[int]:
    return [token for token in row.tokens if token >= 0]


def _group(
    rows: Iterable[SequenceChunk], by: Callable[[SequenceChunk], Hashable]
) -> list[list[SequenceChunk]]:
    groups: dict[Hashable, list[SequenceChunk]] = {}
    for row in rows:
        groups.setdefault(by(row), []).append(row)
    return list(groups.values())
