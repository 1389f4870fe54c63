"""An encoder's answer is that of its text alone and unpadded, whatever shares its forward pass."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BigBirdConfig,
    BigBirdPegasusConfig,
    BigBirdPegasusForConditionalGeneration,
    CanineConfig,
    ConvBertConfig,
    FNetConfig,
    FunnelConfig,
    MobileBertConfig,
    PreTrainedConfig,
    YosoConfig,
)

from predictor.checkpoint.vocabulary import vocabulary_of
from predictor.engine.encoding.batching import BatchLimits
from predictor.engine.encoding.invariance import check_padding_invariance
from predictor.engine.encoding.postprocess import postprocess_for
from predictor.engine.encoding.runner import EncoderRunner
from predictor.engine.generation.encoder_decoder_runner import EncoderDecoderRunner
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.sampling_params import as_source
from predictor.tasks.task import RawInstance
from tests.encoding import checkpoints
from tests.encoding.checkpoints import VOCABULARY, make_encoder, reading_tokenizer
from tests.serving import Up, bring_up

TEXTS = (
    "one of middle size, more or less",
    *["a text that is so much longer than all the others that these are padded to it"] * 3,
)
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_SHAPE = _IDS | {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 260,
}
SEE_PADDING: dict[str, PreTrainedConfig] = {
    # Without a mask, with convolutions over the padding, and with the embeddings of neighbours.
    "fnet": FNetConfig(**{k: v for k, v in _SHAPE.items() if k != "num_attention_heads"}),
    "convbert": ConvBertConfig(**_SHAPE, embedding_size=64),
    "mobilebert": MobileBertConfig(
        **_SHAPE, embedding_size=64, intra_bottleneck_size=64, normalization_type="layer_norm"
    ),
}
SEE_IT_A_LITTLE: dict[str, PreTrainedConfig] = {
    # Pools neighbours, and hashes the padding's keys.
    "funnel": FunnelConfig(
        architectures=["FunnelModel"],
        vocab_size=VOCABULARY,
        d_model=64,
        n_head=4,
        d_head=16,
        d_inner=128,
        block_sizes=[2, 2],
    ),
    "yoso": YosoConfig(**_SHAPE, use_expectation=True),
}

POOLING = {
    "canine": CanineConfig(
        **{key: value for key, value in _SHAPE.items() if key not in {"vocab_size", *_IDS}},
        architectures=["CanineModel"],
    ),
    "funnel": SEE_IT_A_LITTLE["funnel"],
}


IN_BLOCKS: dict[str, Any] = {"block_size": 4, "num_random_blocks": 1}  # if over 28 tokens


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def get(architecture: str) -> Path:
        monkeypatch.setitem(checkpoints.CONFIGS, architecture, SEE_PADDING[architecture])
        return make_encoder(tmp_path / architecture, architecture, "sequence_classification")

    return get


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
    if "attention_mask" not in inspect.signature(model.forward).parameters:
        del inputs["attention_mask"]
    with torch.inference_mode():
        return model(**inputs).logits[0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", SEE_PADDING)
def test_a_model_that_sees_padding_runs_alone_and_unpadded_and_says_so(
    make: Callable[[str], Path], architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(architecture)
    up = bring_up(folder, task="sequence_classification", max_batch_tokens=1024)
    assert "Texts run one at a time and unpadded, because of this model: padding" in caplog.text
    for texts in (TEXTS[:1], TEXTS):
        np.testing.assert_allclose(logits(up, *texts)[0], expected(folder, TEXTS[0]), atol=1e-5)


def padding_reason(model: Any) -> str | None:
    """What the test at the start says of a model of embeddings."""
    limits = BatchLimits(1024, 16, delay=0.0, bucket_shapes=True)
    postprocess = postprocess_for("text_embedding", pooling="mean")
    runner = EncoderRunner(
        model, device=torch.device("cpu"), limits=limits, postprocess=postprocess
    )
    return check_padding_invariance(runner, model, end=2, longest=128)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", SEE_IT_A_LITTLE)
def test_padding_is_told_from_the_rounding_of_half_precision(architecture: str, dtype: str) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(SEE_IT_A_LITTLE[architecture])
    model = model.to(getattr(torch, dtype)).eval()
    assert "padding changes its answers" in str(padding_reason(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_model_that_sees_no_padding_is_batched(
    tmp_path: Path, architecture: str, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_encoder(tmp_path / architecture, architecture, "sequence_classification")
    bring_up(folder, task="sequence_classification", dtype=dtype, max_batch_tokens=1024)
    assert "one at a time" not in caplog.text


def test_a_model_of_characters_needs_no_vocabulary() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(POOLING["canine"]).eval()
    assert vocabulary_of(model.config) == 0x110000
    assert "padding" in str(padding_reason(model))


def test_a_short_text_changes_no_attention_of_later_texts(
    make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEE_PADDING, "big_bird", BigBirdConfig(**_SHAPE, **IN_BLOCKS))
    folder = make("big_bird")
    up = bring_up(folder, task="sequence_classification", max_batch_tokens=1024)
    for texts in (("short",), TEXTS, ("short", *TEXTS, "short")):
        for text, answer in zip(texts, logits(up, *texts), strict=True):
            np.testing.assert_allclose(answer, expected(folder, text), atol=1e-5)


def test_a_short_source_changes_no_attention_of_later_ones() -> None:
    shape = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": VOCABULARY}
    ffn = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    torch.manual_seed(0)
    model: Any = BigBirdPegasusForConditionalGeneration(
        BigBirdPegasusConfig(**shape, **ffn, **heads, **IN_BLOCKS, max_position_embeddings=128)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    runner = EncoderDecoderRunner(model, device=torch.device("cpu"))
    long, short = ((*as_source(range(10, 10 + count)), 3) for count in (60, 9))
    first = runner.run([SequenceChunk(0, 0, long)])
    both = runner.run([SequenceChunk(1, 0, short), SequenceChunk(2, 0, long)])
    torch.testing.assert_close(both[1:], first)
    assert not torch.allclose(both[:1], first)


@pytest.mark.parametrize("architecture", POOLING)
def test_a_model_that_pools_neighbours_is_served_and_pads_the_shortest_texts(
    tmp_path: Path, architecture: str
) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(POOLING[architecture])
    model.eval().save_pretrained(tmp_path)
    reading_tokenizer(with_ends=False).save_pretrained(tmp_path)
    up = bring_up(tmp_path, task="text_embedding", max_batch_tokens=1024)
    task: Any = up.task
    instances = [RawInstance({"text": text}) for text in ("a", TEXTS[0])]
    request = task.spec.request({"normalize": False}, instances)
    short, long = (one.values for one in asyncio.run(task.prepare(request).complete()))
    ids = reading_tokenizer(with_ends=False)(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        states = model(**ids).last_hidden_state
    np.testing.assert_allclose(long, states[0].mean(0), atol=1e-5)
    assert np.isfinite(short).all()
