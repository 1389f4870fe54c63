"""What models keep of a sequence beside keys and values, or under other names, as real ones do."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.lengths import Lengths
from predictor.constraints import largest_batch, reason_against_batches, serving_notes
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.profiling.block_dedup import BlockDeduplicator
from predictor.profiling.blocks import find_blocks
from predictor.profiling.footprint import build_on_meta
from predictor.profiling.meta_run import MetaRun
from predictor.profiling.sequence_cache import KeptTensors, in_modules
from predictor.settings import Settings
from tests.placement.models import measured

SHAPE = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

STATEFUL = {
    "mamba": {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 4},
    "falcon_mamba": {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 4},
    "mamba2": {
        "vocab_size": 264,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
    },
    "rwkv": {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 4},
    "xlstm": {
        "vocab_size": 264,
        "hidden_size": 64,
        "num_blocks": 4,
        "num_heads": 2,
        "qk_dim_factor": 1.0,
    },
    "jamba": {**SHAPE, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {**SHAPE, **MAMBA, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**SHAPE, **MAMBA, "mamba_d_ssm": 128},
    "qwen3_next": {**SHAPE, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32},
    "lfm2": {**SHAPE, "layer_types": ["conv", "full_attention"] * 2},
    "minimax": {**SHAPE, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"] * 2},
    "recurrent_gemma": {
        **SHAPE,
        "lru_width": 64,
        "attention_window_size": 64,
        "block_types": ["recurrent", "attention"],
    },
}
KEEPS_NO_KEYS = {"mamba", "falcon_mamba", "mamba2", "rwkv", "xlstm"}


def config_of(name):
    return AutoConfig.for_model(name, **copy.deepcopy(STATEFUL[name]))


def kept_by(name, tokens, dtype):
    """Bytes that each block of a real model keeps of a sequence of so many tokens."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name), dtype=dtype).eval()
    blocks = [model.get_submodule(block) for block in find_blocks(model)]
    before = {id(tensor) for own in in_modules(blocks) for tensor in own}
    with torch.no_grad():
        output = model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=True)
    names = ("past_key_values", "cache_params", "state")
    caches = [output[name] for name in names if name in output]
    states = [[tensor for tensor in own if id(tensor) not in before] for own in in_modules(blocks)]
    return KeptTensors.of([*caches, states], len(blocks)).bytes_by_block()


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_of_a_sequence_is_what_a_real_pass_leaves(name):
    footprint = measured(config_of(name), dtype="bfloat16", max_model_len=48, prefill_chunk=48)
    blocks = [unit for unit in footprint.units if unit.block is not None]

    assert footprint.probed
    assert sum(unit.kv_fixed for unit in blocks) > 0
    assert (footprint.kv_per_token == 0) == (name in KEEPS_NO_KEYS)
    if name == "recurrent_gemma":
        return  # returns no cache of the keys of its windows
    for tokens in (24, 48):
        planned = [unit.kv_fixed + unit.kv_per_token * tokens for unit in blocks]
        assert planned == kept_by(name, tokens, torch.bfloat16)


def test_the_state_of_codestral_mamba_worked_by_hand():
    # a recurrence's state of a block: 128 heads x 64 x 128 numbers of float32 = 4 MiB
    # a convolution's: (8,192 + 2 x 8 groups x 128) channels x 4 columns of bfloat16 = 80 KiB
    config = AutoConfig.for_model(
        "mamba2",
        hidden_size=4096,
        num_hidden_layers=64,
        state_size=128,
        head_dim=64,
        num_heads=128,
        n_groups=8,
        vocab_size=32768,
    )
    short, long = (
        measured(config, dtype="bfloat16", max_model_len=length, prefill_chunk=16)
        for length in (64, 512)
    )

    for footprint in (short, long):
        assert footprint.kv_per_token == 0
        assert sum(unit.kv_fixed for unit in footprint.units) == 64 * (4 * 2**20 + 80 * 2**10)


ALONE = {"rwkv", "xlstm", "minimax", "recurrent_gemma"}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_model_whose_state_cannot_be_shared_is_planned_for_one(name):
    model = build_on_meta(config_of(name), "float32")
    settings = Settings(model_id="x/y", prefill_chunk=16, max_batch_size=8)

    reason = reason_against_batches("text_generation", model)
    batch = largest_batch(settings, "text_generation", reason, 64)
    assert batch == ((64, 1) if name in ALONE else (16, 8))
    checkpoint = Checkpoint(Path(), model.config, "safetensors", None, "text_generation")
    assert len(serving_notes(checkpoint, model, reason, Lengths(64))) == (name in ALONE)


SHARING = {  # the rows of 8 tokens that may share a pass of 128
    "mamba2": 1,  # every row is padded to 256 tokens
    "bamba": 1,
    "falcon_h1": 1,
    "qwen3_next": 11,  # to 64, which is not its largest layer
    "jamba": 16,
    "lfm2": 16,
}


@pytest.mark.parametrize("name", SHARING)
def test_rows_that_are_padded_to_compute_a_state_share_a_prefill_within_the_plan(name):
    config, chunk, rows = config_of(name), 128, 16
    footprint = measured(config, max_model_len=256, prefill_chunk=chunk, max_batch_size=rows)
    limits = SchedulerLimits(
        4096, rows, chunk, keeps_state=True, least_row_tokens=footprint.least_row_tokens
    )
    model = build_on_meta(config_of(name), "float32")
    run = MetaRun(model, [model.get_submodule(x) for x in find_blocks(model)], BlockDeduplicator())

    for count in (1, 2, 8, 33, 65):
        most = max(n for n in range(1, rows + 1) if n == 1 or limits.can_prefill(n, count))
        assert run.run(most, count, run.empty()).peak <= footprint.activations
        if count == 8:
            assert most == SHARING[name]
