"""Architectures of every kind: in company everyone gets the tokens that `generate` gives alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predictor.engine.generation.batchability import check_batch_invariance
from predictor.engine.generation.cache_kinds import keeps_state, unbatchable_reason
from predictor.engine.generation.kv_accounting import PADDING_PAGES
from predictor.engine.generation.runner import BatchRunner
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.private.cache_layers import cache_layers
from tests.architectures import ARCHITECTURES, QUICK, noisy
from tests.checkpoints import byte_tokenizer
from tests.engine.test_contamination import Ask, Company, check, generated
from tests.serving import Collected, bring_up

KV_TOKENS = 64
CPU = torch.device("cpu")
REQUESTS = [
    Ask([50 + index for index in range(length)], SamplingParams(max_new_tokens=new), at)
    for length, new, at in [(9, 14, 0), (3, 12, 0), (21, 9, 2), (1, 10, 3)]
]

_CASES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.full_grid)
    for name in ARCHITECTURES
]


@pytest.mark.parametrize("name", _CASES)
def test_tokens_in_company_are_those_of_generate_alone(name: str) -> None:
    model = noisy(name)
    runner = BatchRunner(
        model,
        device=CPU,
        layers=cache_layers(model),
        pages=KV_TOKENS + PADDING_PAGES,
        max_length=64,
        slots=4,
    )
    assert unbatchable_reason(model) is None
    assert check_batch_invariance(runner, model, CPU) is None
    states = {"keeps_state": keeps_state(model)}
    company = Company(
        runner, REQUESTS, kv_tokens=KV_TOKENS, sequences=4, chunk=8, breakeven_tokens=16, **states
    )
    check(REQUESTS, company.run(), [generated(model, ask).tokens for ask in REQUESTS])
    assert company.runner.most_rows >= 3
    assert company.preemptions == 0 or runner.cache.free_pages == KV_TOKENS


@pytest.mark.full_grid
@pytest.mark.parametrize("device_map", ["auto", "disk"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_server_gives_the_tokens_of_generate(tmp_path: Path, name: str, device_map: str) -> None:
    noisy.__wrapped__(name).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    folder = tmp_path / "model"
    up = bring_up(folder, device_map=device_map, offload_folder=str(tmp_path / "offload"))
    engine = up.task.engine
    try:
        callbacks = [Collected() for _ in REQUESTS]
        for ask, callback in zip(REQUESTS, callbacks, strict=True):
            engine.submit(ask.prompt, ask.sampling, callback)
        for ask, callback in zip(REQUESTS, callbacks, strict=True):
            tokens = generated(noisy(name), ask).tokens
            until = tokens.index(2) + 1 if 2 in tokens else len(tokens)
            assert callback.wait().tokens == tokens[:until]
    finally:
        engine.stop()
        assert engine.join(30)
