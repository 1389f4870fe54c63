"""Layers with a window: contexts many windows long give the tokens that `generate` gives alone.

Prompts are computed in chunks, sequences of unequal lengths share passes, and some are preempted,
for lack of room for whole sequences or for windows.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.kv_accounting import PADDING_PAGES
from predictor.engine.generation.layout import SequenceChunk
from predictor.engine.generation.runner import BatchRunner
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.serial_runner import SerialRunner
from predictor.private.cache_layers import cache_layers
from predictor.profiling.footprint import build_on_meta, measure_footprint
from tests.checkpoints import VOCABULARY, byte_tokenizer
from tests.engine.test_contamination import Alone, Ask, Company, check, generated
from tests.mixture.families import SHAPE
from tests.serving import Collected, blocks_on_disk, bring_up

WINDOW, CHUNK, LONGEST = 8, 12, 128
KV_TOKENS, WINDOW_TOKENS = 230, 4 * WINDOW

_SHAPE = SHAPE | {"sliding_window": WINDOW}
_HEAD = {"head_dim": 16}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_PLAIN = {"num_experts": 4, "num_experts_per_tok": 2} | _HEAD
_EXPERTS = _PLAIN | {"moe_intermediate_size": 32}
_ROUTED = _EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}
_BY_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16}
_LATER = {"use_sliding_window": True, "max_window_layers": 1}

QUICK: dict[str, dict[str, Any]] = {
    "mistral": {},
    "gemma2": {},
    "gemma3_text": _HEAD | _MIXED,
    "gemma3n_text": _HEAD
    | _BY_LAYER
    | {"layer_types": ["sliding_attention", "full_attention"] + ["sliding_attention"] * 2}
    | {"num_kv_shared_layers": 1, "laurel_rank": 8, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": _EXPERTS | _BY_LAYER | {"enable_moe_block": True, "top_k_experts": 2},
    "gpt_oss": _LOCAL | _HEAD,
    "llama4_text": _LOCAL | _HEAD | {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 96},
    "phi3": {},
    "qwen2": _LATER,
    "cohere2": {},
    "exaone4": {},
    "olmo3": {},
    "lfm3": {"layer_types": ["conv", "full_attention"] + ["sliding_attention"] * 2},
    "inkling_text": _ROUTED
    | {"layer_types": ["hybrid_sliding", "hybrid"] * 2, "sliding_window_size": WINDOW}
    | {"swa_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2}
    | {"rel_extent": 16},
    "modernbert-decoder": {},
}
"""A line is an architecture: its model type, and what it needs beside the shape of all."""

FURTHER: dict[str, dict[str, Any]] = {
    "afmoe": _EXPERTS,
    "beam": _ROUTED | {"mlp_layer_types": ["dense", *["sparse"] * 3]},
    "cohere2_moe": _PLAIN | {"intermediate_size": 32},
    "cwm": {},
    "doge": {},
    "dots1": _ROUTED | _MIXED | {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "exaone_moe": _EXPERTS,
    "flint": _EXPERTS | {"shared_expert_intermediate_size": 48},
    "granite_swa": {},
    "granitemoe_swa": _LOCAL,
    "kolibri1": _EXPERTS,
    "laguna": _EXPERTS | _MIXED,
    "mellum": _EXPERTS | _MIXED,
    "mimo_v2_flash": _ROUTED,
    "ministral": _HEAD,
    "ministral3": {},
    "mixtral": _LOCAL,
    "phi4_multimodal": {},
    "phimoe": _LOCAL,
    "qwen2_moe": _EXPERTS | _LATER,
    "qwen3": _LATER,
    "qwen3_moe": _EXPERTS | _LATER,
    "smollm3": _MIXED,
    "starcoder2": {},
    "vaultgemma": _HEAD,
}
"""The same for architectures that run with ``--full-grid`` alone."""

CONFIGS = QUICK | FURTHER
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.full_grid) for name in FURTHER)]

REQUESTS = [
    Ask([(7 * index + 31 * at) % 250 + 5 for index in range(length)], SamplingParams(new), at, gone)
    for length, new, at, gone in [
        (70, 24, 0, None),
        (3, 22, 0, None),
        (1, 40, 1, None),
        (31, 9, 2, 9),
        (45, 20, 3, None),
        (8, 30, 4, None),
    ]
]


@functools.cache
def noisy(name: str) -> Any:
    """Return a model whose tokens depend on all that it attends to."""
    torch.manual_seed(0)
    config = config_of(name)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * 0.15
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model


def config_of(name: str) -> Any:
    return AutoConfig.for_model(name, **copy.deepcopy(_SHAPE | CONFIGS[name]))


@functools.cache
def alone(name: str) -> tuple[Alone, ...]:
    return tuple(generated(noisy(name), ask) for ask in REQUESTS)


def batch_runner(name: str) -> BatchRunner:
    return BatchRunner(
        noisy(name),
        device=torch.device("cpu"),
        layers=cache_layers(noisy(name)),
        pages=KV_TOKENS + PADDING_PAGES,
        max_length=LONGEST,
        slots=4,
        window_pages=WINDOW_TOKENS + CHUNK,
    )


def company_of(runner: Any, **others: Any) -> Company:
    limits = {"kv_tokens": KV_TOKENS, "window": WINDOW, "window_tokens": WINDOW_TOKENS}
    passes = {"sequences": 5, "chunk": CHUNK, "breakeven_tokens": 16}
    return Company(runner, REQUESTS, **limits | passes | others)


@pytest.mark.parametrize("name", NAMES)
def test_contexts_many_windows_long_give_the_tokens_of_generate(name: str) -> None:
    runner = batch_runner(name)
    company = company_of(runner, keeps_state=runner.cache.keeps_state)
    check(REQUESTS, company.run(), [one.tokens for one in alone(name)])
    assert any(runner.cache.is_sliding)
    assert company.runner.most_rows >= 3
    assert runner.cache.free_pages == KV_TOKENS
    assert runner.cache.free_window_pages == WINDOW_TOKENS + CHUNK - PADDING_PAGES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_planned_for_a_window_is_what_a_layer_of_the_engine_keeps(name: str) -> None:
    model = build_on_meta(config_of(name), "float32")
    footprint = measure_footprint(model, max_model_len=LONGEST, prefill_chunk=CHUNK)
    layers = cache_layers(noisy(name))

    assert footprint.window == WINDOW
    windowed = [bool(layer.window) for layer in layers]
    blocks = [unit for unit in footprint.units if unit.block is not None]
    assert [unit.kv_windowed > 0 for unit in blocks] == windowed


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "lfm3"])
def test_one_sequence_at_a_time_keeps_no_more_than_its_windows(name: str) -> None:
    model = noisy(name)
    runner = SerialRunner(model, device=torch.device("cpu"))
    prompt = list(range(5, 5 + 8 * WINDOW))
    logits = runner.run([SequenceChunk(0, 0, prompt)])
    kept = runner._sequences[0].caches["past_key_values"].layers
    windows = [layer.window for layer in cache_layers(model)]
    tokens = [
        layer.keys.untyped_storage().nbytes() // layer.keys[..., :1, :].nbytes
        for layer, window in zip(kept, windows, strict=True)
        if window
    ]
    assert set(tokens) == {WINDOW - 1}
    for _ in range(3):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        start = len(prompt)
        prompt.append(int(logits.argmax()))
        logits = runner.run([SequenceChunk(0, start, prompt[start:])])


@pytest.mark.parametrize("tokens", [{"window_tokens": WINDOW}, {"kv_tokens": 110}])
def test_who_is_preempted_has_the_tokens_of_generate(tokens: dict[str, int]) -> None:
    company = company_of(batch_runner("gemma3_text"), **tokens)
    check(REQUESTS, company.run(), [one.tokens for one in alone("gemma3_text")])


def test_after_a_pass_or_a_sampler_that_failed_the_tokens_are_those_of_generate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, passes, samples = batch_runner("gemma3_text"), [], []
    sample = BatchSampler.sample

    def fail_sometimes(_: Any, inputs: Any) -> None:
        passes.append(len(inputs[0]) > 1)
        if passes[-1] and sum(passes) in (2, 9, 20):
            raise ArithmeticError("once")

    def sample_sometimes(self: BatchSampler, samplers: Any, logits: torch.Tensor) -> Any:
        samples.append(len(logits) > 1)
        if samples[-1] and sum(samples) in (4, 12):
            raise ArithmeticError("once")
        return sample(self, samplers, logits)

    monkeypatch.setattr(BatchSampler, "sample", sample_sometimes)
    handle = noisy("gemma3_text").model.layers[2].register_forward_pre_hook(fail_sometimes)
    try:
        check(REQUESTS, company_of(runner).run(), [one.tokens for one in alone("gemma3_text")])
    finally:
        handle.remove()
    assert sum(passes) > 20
    assert sum(samples) > 12
    assert runner.cache.free_window_pages == WINDOW_TOKENS + CHUNK - PADDING_PAGES


@pytest.mark.parametrize("is_on_disk", [False, True], ids=["resident", "on-disk"])
@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_a_server_gives_the_tokens_of_generate(tmp_path: Path, name: str, is_on_disk: bool) -> None:
    folder = tmp_path / "model"
    noisy(name).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    flags: dict[str, Any] = {"device_map": blocks_on_disk(folder)} if is_on_disk else {}
    up = bring_up(folder, offload_folder=str(tmp_path / "offload"), prefill_chunk=CHUNK, **flags)
    engine = up.task.engine
    assert engine.limits.window == WINDOW
    try:
        callbacks = [Collected() for _ in REQUESTS]
        for ask, callback in zip(REQUESTS, callbacks, strict=True):
            engine.submit(ask.prompt, ask.sampling, callback)
        for callback, tokens in zip(callbacks, _until_end(name), strict=True):
            assert callback.wait().tokens == tokens
    finally:
        engine.stop()
        assert engine.join(30)


def _until_end(name: str) -> list[Sequence[int]]:
    """The tokens of the requests up to the one that ends them."""
    replies = [one.tokens for one in alone(name)]
    return [tokens[: tokens.index(2) + 1] if 2 in tokens else tokens for tokens in replies]
