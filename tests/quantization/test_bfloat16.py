"""Quantised checkpoints in bfloat16: tokens are equal where the best logit stands out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.quantization.forms import FORMS
from tests.quantization.models import NEW_TOKENS, PROMPTS, make_quantised
from tests.quantization.test_served import OF_EXPERTS, placed
from tests.weights.experts.test_families import Reference, count_clear

ALWAYS = ("fp8-block", "int4", "gptq4-act-order", "nf4")


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=() if form in ALWAYS else pytest.mark.full_grid)
        for form in (*OF_EXPERTS, "nf4", "fp4")
    ],
)
def test_tokens_are_those_of_transformers(tmp_path: Path, form: str) -> None:
    quantised = make_quantised(tmp_path / "made", "llama", FORMS[form])
    half = Reference(quantised.plain, torch.bfloat16)
    exact = Reference(quantised.plain, torch.float32)
    compared = 0
    with placed(quantised, "half in the store", tmp_path / "offload", dtype="bfloat16") as up:
        for prompt, wanted in zip(PROMPTS, quantised.tokens, strict=True):
            reply = up.tokens(prompt, max_new_tokens=NEW_TOKENS)
            clear = count_clear(half.logits(prompt, wanted), exact.logits(prompt, wanted))
            assert reply[:clear] == wanted[:clear]
            compared += clear
    assert compared > len(PROMPTS) // 2
