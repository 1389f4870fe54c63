"""Quantised checkpoints whose files, names or architectures are unlike those of the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from tests.checkpoints import VOCABULARY
from tests.encoding.checkpoints import make_encoder
from tests.quantization.checkpoints import KEPT, quantise
from tests.quantization.forms import FORMS
from tests.quantization.models import make_quantised
from tests.quantization.test_served import check, placed
from tests.serving import bring_up


def without_prefix(name: str) -> str:
    return name.removeprefix("model.")


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "int4", {"shards": 5}),
    ("qwen3_moe", "awq", {"shards": 5}),
    ("llama", "gptq4", {"rename": without_prefix}),
    ("qwen3_moe", "fp8-block", {"rename": without_prefix}),
    ("llama-tied", "nf4", {}),
    ("qwen2", "int8", {}),
    ("opt", "nf4", {}),
    ("gpt_neox", "bnb8", {}),
]


@pytest.mark.parametrize(("name", "form", "how"), CASES)
@pytest.mark.parametrize(
    "location",
    [
        "half in the store",
        pytest.param("resident", marks=pytest.mark.full_grid),
        pytest.param("half in the checkpoint", marks=pytest.mark.full_grid),
    ],
)
def test_files_and_architectures(
    tmp_path: Path, name: str, form: str, how: dict[str, Any], location: str
) -> None:
    quantised = make_quantised(tmp_path / "made", name, FORMS[form], **how)
    with placed(quantised, location, tmp_path / "offload") as up:
        check(up, quantised)


def test_a_packed_head(tmp_path: Path) -> None:
    form = FORMS["nf4"]
    form = dataclasses.replace(form, config={**form.config, "llm_int8_skip_modules": []})
    kept = tuple(part for part in KEPT if part != "lm_head")
    quantised = make_quantised(tmp_path / "made", "llama", form, kept=kept)
    with placed(quantised, "half in the store", tmp_path / "offload") as up:
        assert "lm_head" in up.prepared.packed.linears
        check(up, quantised)


@pytest.mark.parametrize("form", ["bnb8", "nf4"])
def test_an_encoder(tmp_path: Path, form: str) -> None:
    made = make_encoder(tmp_path / "made", "bert", "text_embedding")
    packed, plain = quantise(made, tmp_path, FORMS[form])
    ids = torch.arange(5, 45)[None] % VOCABULARY
    up = bring_up(packed, task="text_embedding", dtype="float32")
    assert up.prepared.packed.title == FORMS[form].title
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(plain)(ids).last_hidden_state
        states = up.weights.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
