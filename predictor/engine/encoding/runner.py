"""Run one forward pass of an encoder task: texts in, the task's result for each text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.inputs import EncoderInput
from predictor.engine.encoding.postprocess import EncoderBatch, Postprocess, comparable
from predictor.private.attention_types import keep_attention_type
from predictor.private.forward_arguments import forward_arguments


class EncoderRunner:
    """Runs texts in one batch, padded on the right. It may not be called from two threads at once.

    Padding is masked. Two kinds of models look at padding besides the mask, by its token: models of
    RoBERTa's kind count positions from it, and decoders with a classification head look for the
    last token that is not padding. Both take the token from their config, and so does this class.
    If a decoder's config has none, any token will do that no text of the batch ends with. Rows that
    only fill a bucket of shapes repeat the first text.

    Attributes:
        model: The model.
        postprocess: Makes a result for each row of the model's output.
        sees_columns: Whether the model attends otherwise if a batch has more columns.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        limits: BatchLimits,
        postprocess: Postprocess,
        shortest: int = 1,
    ) -> None:
        """Take a loaded model.

        Args:
            model: The model.
            device: The device of its first part.
            limits: The limits of a forward pass.
            postprocess: Makes a result for each row of the model's output.
            shortest: Fewest columns that the model can compute; shorter texts are padded to it.
        """
        self._shortest = shortest
        self.model: Any = model
        self.postprocess = postprocess
        self.sees_columns = keep_attention_type(model)
        self._device = device
        self._limits = limits
        config: Any = model.config.get_text_config()
        self._pad: int | None = getattr(config, "pad_token_id", None)
        self._config = config
        accepted = forward_arguments(model)
        self._takes_types = "token_type_ids" in accepted
        self._extra: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}

    def run(self, texts: Sequence[EncoderInput]) -> Sequence[Any]:
        """Return the result of each text, in order."""
        more = self._limits.rows_of(len(texts)) - len(texts)
        return self._run([*texts, *[texts[0]] * more])[: len(texts)]

    def run_unpadded(self, text: EncoderInput) -> Any:
        """Return the answer of a text alone and unpadded, as `comparable` makes it."""
        columns = max(len(text.ids), self._shortest)
        return self._compute([text], columns, comparable(self.postprocess))[0]

    def run_padded(self, texts: Sequence[EncoderInput]) -> Sequence[Any]:
        """Return the answers of texts in one batch, as `comparable` makes them."""
        return self._compute(texts, self._columns(texts), comparable(self.postprocess))

    def _run(self, texts: Sequence[EncoderInput]) -> Sequence[Any]:
        return self._compute(texts, self._columns(texts), self.postprocess)

    def _columns(self, texts: Sequence[EncoderInput]) -> int:
        return max(self._limits.columns(max(len(text.ids) for text in texts)), self._shortest)

    @torch.inference_mode()
    def _compute(
        self, texts: Sequence[EncoderInput], columns: int, postprocess: Postprocess
    ) -> Sequence[Any]:
        ids = torch.full((len(texts), columns), self._padding(texts), dtype=torch.long)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            mask[row, : len(text.ids)] = 1
            if text.types is not None:
                types[row, : len(text.ids)] = torch.tensor(text.types)
        mask = mask.to(self._device)
        inputs = {"input_ids": ids.to(self._device), "attention_mask": mask, **self._extra}
        if self._takes_types and any(text.types is not None for text in texts):
            inputs["token_type_ids"] = types.to(self._device)
        return postprocess(self.model(**inputs), EncoderBatch(texts, mask))

    def _padding(self, texts: Sequence[EncoderInput]) -> int:
        if self._pad is not None:
            return self._pad
        last = {text.ids[-1] for text in texts}
        padding = next(token for token in range(len(last) + 1) if token not in last)
        self._config.pad_token_id = padding
        return padding
