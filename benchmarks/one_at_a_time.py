"""A server like KServe's for Hugging Face encoders: one request at a time, on the event loop.

It does the same as `huggingfaceserver/encoder_model.py` for ``text_embedding``, with the same SDK:
`preprocess` tokenizes, `predict` runs the forward pass without awaiting, and `postprocess` takes
the mean over the tokens and normalizes it. The model is in main memory; torch chooses the threads.

Arguments: the model's folder, and the port. The model's name is ``m``.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

FOLDER, PORT = sys.argv[1:]
del sys.argv[1:]  # kserve would parse them

import kserve  # noqa: E402


class OneAtATime(kserve.Model):
    """Embeds texts."""

    def __init__(self, folder: str) -> None:
        super().__init__("m")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval()
        self.ready = True

    async def preprocess(self, payload: Any, *_: Any, **__: Any) -> Any:
        """Return the tokens of all instances."""
        instances = payload["instances"]
        return self._tokenizer(instances, padding=True, truncation=True, return_tensors="pt")

    async def predict(self, payload: Any, *_: Any, **__: Any) -> Any:
        """Return the last hidden states and the attention mask."""
        with torch.no_grad():
            return self._model(**payload).last_hidden_state, payload["attention_mask"]

    async def postprocess(self, result: Any, *_: Any, **__: Any) -> Any:
        """Return the vectors."""
        states, mask = result
        weights = mask[:, :, None].to(states.dtype)
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return {"predictions": torch.nn.functional.normalize(mean, dim=1).tolist()}


if __name__ == "__main__":
    server = kserve.ModelServer(http_port=int(PORT), enable_grpc=False, workers=1)
    server.start([OneAtATime(FOLDER)])
