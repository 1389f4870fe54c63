"""KV cache and activations, against real forward passes on the CPU."""

import copy

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    DynamicCache,
    FalconConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from predictor.errors import ConfigurationError
from predictor.profiling.blocks import find_blocks
from predictor.profiling.decoder_probe import probe
from predictor.profiling.footprint import build_on_meta, measure_footprint
from tests.placement.models import ARCHITECTURES, WINDOW, measured, real_model

SCRATCH = 160 * 1024
"""What the CPU's attention kernel takes for each thread, whatever the model: not in the probe."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(model, tokens, past=None):
    ids = torch.ones(1, tokens, dtype=torch.long)
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)


def real_cache(model, tokens):
    """Bytes of keys and values of each block after a real pass over so many tokens."""
    layers = run(model, tokens, DynamicCache(config=model.config)).past_key_values.layers
    return [layer.keys.nbytes + layer.values.nbytes for layer in layers]


def planned_cache(footprint, tokens):
    blocks = [unit for unit in footprint.units if unit.block is not None]
    kept = min(tokens, footprint.window)
    return [unit.kv_fixed + unit.kv_per_token * tokens + unit.kv_windowed * kept for unit in blocks]


@pytest.mark.parametrize("length", [WINDOW - 2, 3 * WINDOW])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cache_is_what_a_real_pass_holds(name, length):
    footprint = measured(name, max_model_len=length, prefill_chunk=length)
    held = real_cache(real_model(name), length)

    assert footprint.probed
    one = [unit.kv_windowed for unit in footprint.units if unit.block is not None]
    # room for the token that is computed next is planned in a window, and not held after a pass
    assert planned_cache(footprint, length) == [x + y for x, y in zip(held, one, strict=True)]


@pytest.mark.parametrize("longest", [WINDOW + 2, 2 * WINDOW - 2, 4 * WINDOW])
@pytest.mark.parametrize("name", ["mistral", "gemma3", "llama"])
def test_the_cache_is_never_planned_too_small_for_shorter_sequences(name, longest):
    footprint, model = measured(name, max_model_len=longest), real_model(name)

    for length in range(2, longest + 1):
        pairs = zip(planned_cache(footprint, length), real_cache(model, length), strict=True)
        assert all(planned >= real for planned, real in pairs), length


# 2 heads of 16, keys and values, float32
@pytest.mark.parametrize(
    ("name", "whole", "windowed"),
    [("mistral", [0] * 4, [256] * 4), ("gemma3", [0, 256] * 2, [256, 0] * 2)],
)
def test_layers_with_a_window_are_planned_for_it(name, whole, windowed):
    footprint = measured(name, max_model_len=128, prefill_chunk=16)
    blocks = [unit for unit in footprint.units if unit.block is not None]

    assert (footprint.window, footprint.prefill_chunk) == (WINDOW, 16)
    assert [unit.kv_per_token for unit in blocks] == whole
    assert [unit.kv_windowed for unit in blocks] == windowed
    assert {unit.kv_fixed for unit in blocks} == {0}


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_window_that_no_sequence_outgrows_is_planned_whole(name):
    footprint = measured(name, max_model_len=WINDOW)

    assert (footprint.window, footprint.kv_windowed) == (0, 0)
    assert {unit.kv_per_token for unit in footprint.units if unit.block is not None} == {256}


def test_a_model_that_masks_all_layers_alike_is_planned_whole():
    model = build_on_meta(copy.deepcopy(ARCHITECTURES["mistral"]), "float32")
    forward = model.model.layers[1].self_attn.forward

    def attend(*args, attention_mask=None, past_key_values=None, **others):
        mask = torch.empty(1, 1, args[0].shape[1] if args else 1, 7, device="meta")
        return forward(*args, attention_mask=mask, past_key_values=past_key_values, **others)

    model.model.layers[1].self_attn.forward = attend
    footprint = measure_footprint(model, max_model_len=64, prefill_chunk=16)
    assert footprint.window == 0
    assert footprint.kv_per_token == 4 * 256


def test_a_window_of_a_config_that_no_mask_of_the_model_heeds_is_no_window():
    config = copy.deepcopy(ARCHITECTURES["llama"])
    config.sliding_window = WINDOW
    footprint = measured(config)

    assert footprint.window == 0
    assert footprint.kv_per_token == measured("llama").kv_per_token


def test_a_window_takes_less_for_attention_than_whole_sequences():
    windowed, whole = (
        measured(MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=window))
        for window in (16, None)
    )

    assert (windowed.window, whole.window) == (16, 0)
    assert windowed.activations < whole.activations
    assert windowed.activations_per_sequence <= whole.activations_per_sequence


def test_a_batch_of_more_tokens_gathers_more_for_each_layer():
    footprint = measured("llama", max_model_len=64, max_batch_size=4)
    per_layer = max(unit.kv_per_token for unit in footprint.units)

    assert footprint.activations_per_sequence >= 64 * per_layer


def test_the_rows_of_a_large_batch_are_counted():
    few, many = (
        measured("llama", max_model_len=64, prefill_chunk=1, max_batch_size=n) for n in (1, 64)
    )

    assert many.activations > few.activations


LLAMA_3_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
BLOOM_176B = BloomConfig(vocab_size=250_880, hidden_size=14_336, n_layer=70, n_head=112)
FALCON_7B = FalconConfig(
    vocab_size=65_024,
    hidden_size=4544,
    num_hidden_layers=32,
    num_attention_heads=71,
    multi_query=True,
    parallel_attn=True,
    bias=False,
    alibi=False,
)
DEEPSEEK_V3 = DeepseekV3Config(num_hidden_layers=4)
MISTRAL_7B = MistralConfig(sliding_window=32)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA_3_8B, 131_072),  # 32 blocks x 8 heads x 128 x keys and values x 2 B
        (BLOOM_176B, 4_014_080),  # 70 blocks x 14,336 x keys and values x 2 B
        (FALCON_7B, 8_192),  # 32 blocks x 1 head x 64 x keys and values x 2 B
        (DEEPSEEK_V3, 4_608),  # 4 blocks x (512 latent + 64 rotary) x 2 B
        (MISTRAL_7B, 0),  # all blocks keep a window
    ],
    ids=["llama-3-8b", "bloom-176b", "falcon-7b", "deepseek-v3", "mistral-7b"],
)
def test_the_bytes_per_token_of_known_models(config: PreTrainedConfig, expected: int):
    footprint = measured(config, dtype="bfloat16")

    assert footprint.probed
    assert footprint.kv_per_token == expected


def allocated_at_worst(model, longest, chunk):
    """Bytes alive besides weights and cache at the worst moment of the last chunk's real pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        past = run(model, longest - chunk).past_key_values if longest > chunk else None
        with record_function("last chunk"):
            cache = run(model, chunk, past).past_key_values
    events = profiled.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == "last chunk")
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = worst = 0
    for moment, change in changes:
        now += change
        worst = max(worst, now) if moment >= start else 0
    return worst - sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


WIDE = {
    "vocab_size": 264,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(("longest", "chunk"), [(128, 128), (512, 64)])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**WIDE, intermediate_size=1024, num_key_value_heads=2),
        BloomConfig(vocab_size=264, hidden_size=256, n_layer=2, n_head=8),
        FalconConfig(**WIDE, multi_query=True, alibi=False),
    ],
    ids=["llama", "bloom", "falcon"],
)
def test_activations_are_not_below_a_real_pass_and_not_far_above(config, longest, chunk):
    footprint = measured(config, max_model_len=longest, prefill_chunk=chunk)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    real = allocated_at_worst(model, longest, chunk)

    assert real > 2 * SCRATCH
    assert real - SCRATCH <= footprint.activations <= 3 * real


def test_a_smaller_chunk_needs_fewer_activations():
    sizes = [measured("llama", prefill_chunk=chunk).activations for chunk in (8, 16, 32)]

    assert sizes == sorted(set(sizes))


def fallback(name, dtype="float32", **arguments):
    """The probe of a model that cannot run on the meta device."""
    model = build_on_meta(ARCHITECTURES[name], dtype)

    def forward(input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        raise NotImplementedError("no kernel for meta")

    model.forward = forward
    blocks = [model.get_submodule(name) for name in find_blocks(model)]
    return probe(model, blocks, **arguments)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "bloom", "gpt2", "opt", "mixtral"])
def test_the_formula_is_the_truth_for_textbook_attention(name):
    probed = fallback(name, max_model_len=32, chunk=16)

    assert not probed.measured
    assert [32 * size for size in probed.kv_per_token] == real_cache(real_model(name), 32)


@pytest.mark.parametrize("name", ["falcon", "gemma3", "mistral", "deepseek"])
def test_the_formula_is_never_below_the_truth_elsewhere(name):
    probed = fallback(name, max_model_len=32, chunk=16)
    real = real_cache(real_model(name), 32)

    assert all(32 * size >= kept for size, kept in zip(probed.kv_per_token, real, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_activations_by_formula_are_not_below_what_is_measured(name):
    formula = fallback(name, max_model_len=64, chunk=16)

    assert formula.activations >= measured(name, max_model_len=64, prefill_chunk=16).activations


def test_a_config_that_tells_nothing_of_its_cache_is_refused():
    model = build_on_meta(copy.deepcopy(ARCHITECTURES["llama"]), "float32")
    model.forward = None
    model.config.hidden_size = 0
    model.config.head_dim = 0

    with pytest.raises(ConfigurationError, match="can neither be measured nor computed"):
        measure_footprint(model, max_model_len=8, prefill_chunk=8)
