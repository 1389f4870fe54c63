"""Small configs of the architectures whose footprints are checked against the real model."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    Gemma3TextConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from predictor.placement.units import Footprint
from predictor.profiling.footprint import build_on_meta, measure_footprint
from tests.checkpoints import CONFIGS, VOCABULARY

WINDOW = 8
"""Tokens of the sliding windows."""

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}

ARCHITECTURES: dict[str, PreTrainedConfig] = CONFIGS | {
    "falcon": FalconConfig(**_SHAPE, multi_query=True, alibi=False),
    "gemma3": Gemma3TextConfig(
        **_SHAPE,
        intermediate_size=96,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "mistral": MistralConfig(
        **_SHAPE, intermediate_size=96, num_key_value_heads=2, sliding_window=WINDOW
    ),
    "deepseek": DeepseekV3Config(
        **_SHAPE,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
    ),
}


def real_model(name: str, dtype: str = "float32") -> PreTrainedModel:
    """Return the model on the CPU, with weights."""
    config = copy.deepcopy(ARCHITECTURES[name])  # a model writes into its config
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def measured(
    config: PreTrainedConfig | str,
    *,
    dtype: str = "float32",
    max_model_len: int = 64,
    prefill_chunk: int = 16,
    max_batch_size: int = 1,
) -> Footprint:
    """Return the footprint of a config, or of the architecture of this name."""
    own = copy.deepcopy(ARCHITECTURES[config] if isinstance(config, str) else config)
    return measure_footprint(
        build_on_meta(own, dtype),
        max_model_len=max_model_len,
        prefill_chunk=prefill_chunk,
        max_batch_size=max_batch_size,
    )
