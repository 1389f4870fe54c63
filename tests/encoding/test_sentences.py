"""Embeddings of a model with trained weights, against sentence-transformers, and of odd layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM

from predictor.errors import CheckpointError
from predictor.tasks.sentence_layout import read_layout
from tests.encoding.checkpoints import make_encoder, minilm_folder
from tests.encoding.conftest import Make
from tests.encoding.test_encoder_tasks import CLOSE, TEXTS, ask, bring_up
from tests.serving import on_disk

SENTENCES = (
    "A man is playing the guitar on a stage.",
    "Someone performs music with a guitar.",
    "The stock market fell sharply today.",
    "Shares lost a lot of their value this morning.",
)


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which comes as a package."""
    return minilm_folder()


@pytest.fixture(scope="module")
def reference(minilm: Path) -> SentenceTransformer:
    return SentenceTransformer(str(minilm), device="cpu")


def vectors(up: Any, *texts: str, **parameters: Any) -> torch.Tensor:
    answers = ask(up, *({"text": text} for text in texts), **parameters)
    return torch.tensor([answer.values for answer in answers])


@pytest.mark.parametrize("placement", ["resident", "disk"])
def test_trained_vectors_are_those_of_sentence_transformers(
    minilm: Path, reference: SentenceTransformer, tmp_path: Path, placement: str
) -> None:
    flags: dict[str, Any] = {}
    if placement == "disk":
        flags["device_map"] = on_disk(bring_up(minilm, "text_embedding"))
        flags |= {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(minilm, "text_embedding", **flags)
    texts = (*SENTENCES, *TEXTS)
    expected = torch.tensor(reference.encode(list(texts)))
    torch.testing.assert_close(vectors(up, *texts), expected, atol=CLOSE, rtol=0)


def test_sentences_that_mean_the_like_are_nearer(minilm: Path) -> None:
    result = vectors(bring_up(minilm, "text_embedding"), *SENTENCES)
    alike = result @ result.T
    assert min(alike[0, 1], alike[2, 3]) > 0.5 > 0.2 > alike[:2, 2:].max()


def test_a_layout_makes_the_task_and_its_longest_text(
    minilm: Path, reference: SentenceTransformer
) -> None:
    up = bring_up(minilm, None, max_model_len=None)  # type: ignore[arg-type]
    assert up.prepared.checkpoint.task == "text_embedding"
    assert up.prepared.footprint.max_model_len == 256  # not the 512 positions of the model
    long = "word " * 1000
    expected = torch.tensor(reference.encode([long]))
    torch.testing.assert_close(vectors(up, long, truncate=True), expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    "mode", ["cls", "mean", "max", "mean_sqrt_len", "weightedmean", "lasttoken"]
)
def test_every_pooling_is_that_of_sentence_transformers(
    make: Make, tmp_path: Path, mode: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make("text_embedding", "bert"), folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    keys = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    keys |= {"mean_sqrt_len": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens"}
    about = {f"pooling_mode_{key}": mode == name for name, key in keys.items()}
    about |= {"word_embedding_dimension": 64, "pooling_mode_lasttoken": mode == "lasttoken"}
    (folder / "1").mkdir()
    (folder / "1" / "config.json").write_text(json.dumps(about))
    expected = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS)))
    result = vectors(bring_up(folder, "text_embedding"), *TEXTS)
    torch.testing.assert_close(result, expected, atol=CLOSE, rtol=0)


def test_a_model_with_another_head_gives_vectors_too(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "model", "bert", "fill_mask")  # it has no pooler
    base = AutoModelForMaskedLM.from_pretrained(folder).eval().bert
    up = bring_up(folder, "text_embedding")
    spec: Any = up.task.spec
    tokens = spec.tokenize(spec.decode({"text": TEXTS[1]}, {}))[0].ids
    with torch.inference_mode():
        mean = base(torch.tensor([tokens])).last_hidden_state[0].mean(dim=0)
    expected = mean / mean.norm()
    torch.testing.assert_close(vectors(up, TEXTS[1])[0], expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"modules.json": "{"}, "cannot be read as JSON"),
        ({"modules.json": '{"a": 1}'}, "not of the form"),
        ({"modules.json": '[{"type": "x.Dense"}]'}, "a module 'Dense', which cannot be served"),
        ({"modules.json": '[{"type": "x.Pooling", "path": "1"}]'}, "must name one way of pooling"),
        (
            {
                "modules.json": '[{"type": "x.Pooling", "path": "1"}]',
                "1/config.json": '{"pooling_mode": "best"}',
            },
            "must name one way of pooling",
        ),
    ],
    ids=["no JSON", "an object", "a dense layer", "no pooling", "an unknown pooling"],
)
def test_a_layout_that_cannot_be_served_is_refused(
    tmp_path: Path, files: dict[str, str], sentence: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        read_layout(tmp_path)
