"""An encoder's answer is that of its text alone and unpadded, whatever shares its forward pass."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, FNetConfig

from predictor.tasks.task import RawInstance
from tests.encoding import checkpoints
from tests.encoding.checkpoints import VOCABULARY, make_encoder
from tests.serving import Up, bring_up

TEXTS = (
    "one of middle size, more or less",
    *["a text that is so much longer than all the others that these are padded to it"] * 3,
)
FNET = FNetConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=4,
    intermediate_size=128,
    max_position_embeddings=260,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)


@pytest.fixture
def fnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(checkpoints.CONFIGS, "fnet", FNET)
    return make_encoder(tmp_path / "fnet", "fnet", "sequence_classification")


def logits(up: Up, *texts: str) -> list[list[float]]:
    task: Any = up.task
    request = task.spec.request(
        {"return_raw_logits": True}, [RawInstance({"text": text}) for text in texts]
    )
    answers = asyncio.run(task.prepare(request).complete())
    return [answer.logits for answer in answers]


def expected(folder: Path, text: str) -> list[float]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    inputs.pop("attention_mask")
    with torch.inference_mode():
        return model(**inputs).logits[0].tolist()  # type: ignore[no-any-return]


def test_a_model_that_sees_padding_runs_alone_and_unpadded_and_says_so(
    fnet: Path, caplog: pytest.LogCaptureFixture
) -> None:
    up = bring_up(fnet, task="sequence_classification", max_batch_tokens=1024)
    assert "Texts run one at a time and unpadded, because of this model: padding" in caplog.text
    for texts in (TEXTS[:1], TEXTS):
        np.testing.assert_allclose(logits(up, *texts)[0], expected(fnet, TEXTS[0]), atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_model_that_sees_no_padding_is_batched(
    tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_encoder(tmp_path / architecture, architecture, "sequence_classification")
    bring_up(folder, task="sequence_classification", max_batch_tokens=1024)
    assert "one at a time" not in caplog.text
