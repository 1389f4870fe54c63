"""Runs one pass of a model that reads: texts in, what the task finds for each out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.inputs import Batch, Run, Text


class EncoderRunner:
    """Runs texts in one batch, padded on the right; may not be called from two threads at a time.

    Padding is masked. Two kinds of models look at padding besides the mask, by its token: those of
    RoBERTa's kind count positions from it, and decoders with a head look for the last token that is
    none. Both find it in their config, and so do we. Where a decoder's config has none, any token
    will do that no text of the batch ends with. Rows that only fill the pass's shape are the first
    text's once more.
    """

    def __init__(
        self, model: PreTrainedModel, *, device: torch.device, limits: BatchLimits, run: Run
    ) -> None:
        """Takes a model that is loaded.

        Args:
            model: The model.
            device: Where its first part executes.
            limits: What its passes are held to.
            run: Makes what is found of the model's output.
        """
        self._model: Any = model
        self._device = device
        self._limits = limits
        self._run = run
        config: Any = model.config.get_text_config()
        self._pad: int | None = getattr(config, "pad_token_id", None)
        self._config = config
        accepted = inspect.signature(model.forward).parameters
        self._takes_types = "token_type_ids" in accepted
        self._extra: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}

    @torch.inference_mode()
    def run(self, texts: Sequence[Text]) -> Sequence[Any]:
        """Returns what is found for each text, in order."""
        more = self._limits.rows_of(len(texts)) - len(texts)
        return self._read([*texts, *[texts[0]] * more])[: len(texts)]

    def _read(self, texts: Sequence[Text]) -> Sequence[Any]:
        columns = self._limits.columns(max(len(text.ids) for text in texts))
        ids = torch.full((len(texts), columns), self._padding(texts), dtype=torch.long)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            mask[row, : len(text.ids)] = 1
            if text.types is not None:
                types[row, : len(text.ids)] = torch.tensor(text.types)
        mask = mask.to(self._device)
        given = {"input_ids": ids.to(self._device), "attention_mask": mask, **self._extra}
        if self._takes_types and any(text.types is not None for text in texts):
            given["token_type_ids"] = types.to(self._device)
        return self._run(self._model(**given), Batch(texts, mask))

    def _padding(self, texts: Sequence[Text]) -> int:
        if self._pad is not None:
            return self._pad
        last = {text.ids[-1] for text in texts}
        found = next(token for token in range(len(last) + 1) if token not in last)
        self._config.pad_token_id = found
        return found
