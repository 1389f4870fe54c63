"""Small configs of architectures that keep a state of each sequence, with or without keys."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedConfig

from tests.checkpoints import VOCABULARY, byte_tokenizer

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_PLAIN = _IDS | {"hidden_size": 64, "num_hidden_layers": 3}
_SHAPE = _PLAIN | {
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
}
_MIXED = ["linear_attention", "full_attention", "linear_attention"]

Config = Callable[[], PreTrainedConfig]

CONFIGS: dict[str, Config] = {
    "mamba": lambda: hf.MambaConfig(**_PLAIN, state_size=8),
    "falcon_mamba": lambda: hf.FalconMambaConfig(**_PLAIN, state_size=8),
    "mamba2": lambda: hf.Mamba2Config(
        **_PLAIN, state_size=16, num_heads=8, head_dim=16, n_groups=2, chunk_size=16
    ),
    "jamba": lambda: hf.JambaConfig(
        **_SHAPE,
        num_experts=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "bamba": lambda: hf.BambaConfig(**_SHAPE, **_MAMBA2, attn_layer_indices=[1]),
    "zamba": lambda: hf.ZambaConfig(
        **_SHAPE, n_mamba_heads=2, mamba_d_state=8, attn_layer_period=2, attn_layer_offset=1
    ),
    "zamba2": lambda: hf.Zamba2Config(
        **_SHAPE,
        mamba_d_state=16,
        n_mamba_heads=8,
        mamba_headdim=16,
        mamba_ngroups=1,
        chunk_size=16,
        hybrid_layer_ids=[1],
        layers_block_type=["mamba", "hybrid", "mamba"],
    ),
    "falcon_h1": lambda: hf.FalconH1Config(**_SHAPE, **_MAMBA2, mamba_d_ssm=128, head_dim=16),
    "granitemoehybrid": lambda: hf.GraniteMoeHybridConfig(
        **_SHAPE,
        **_MAMBA2,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=48,
        layer_types=["mamba", "attention", "mamba"],
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(
        **{key: value for key, value in _SHAPE.items() if key != "num_hidden_layers"},
        hybrid_override_pattern="M-*M",
        head_dim=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        ssm_state_size=16,
        n_groups=2,
        chunk_size=16,
    ),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **_SHAPE, **_DELTA, **_EXPERTS, shared_expert_intermediate_size=48, layer_types=_MIXED
    ),
    "qwen3_5": lambda: hf.Qwen3_5TextConfig(**_SHAPE, **_DELTA, layer_types=_MIXED),
    "qwen3_5_moe": lambda: hf.Qwen3_5MoeTextConfig(
        **_SHAPE, **_DELTA, **_EXPERTS, shared_expert_intermediate_size=48, layer_types=_MIXED
    ),
    "olmo_hybrid": lambda: hf.OlmoHybridConfig(
        **_SHAPE,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=32,
        layer_types=_MIXED,
    ),
    "kimi_linear": lambda: hf.KimiLinearConfig(
        **_SHAPE | {"num_key_value_heads": 4},
        **_EXPERTS,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        linear_head_dim=16,
        linear_num_heads=4,
        first_k_dense_replace=1,
        layer_types=_MIXED,
    ),
    "bailing_hybrid": lambda: hf.BailingHybridConfig(
        **_SHAPE | {"num_key_value_heads": 4},
        **_EXPERTS,
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        head_dim=16,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        layer_types=_MIXED,
    ),
    "lfm2": lambda: hf.Lfm2Config(**_SHAPE, layer_types=["conv", "full_attention", "conv"]),
    "lfm2_moe": lambda: hf.Lfm2MoeConfig(
        **_SHAPE, **_EXPERTS, num_dense_layers=1, layer_types=["conv", "full_attention", "conv"]
    ),
    "lfm3": lambda: hf.Lfm3Config(
        **_SHAPE, sliding_window=8, layer_types=["conv", "full_attention", "sliding_attention"]
    ),
    "zaya": lambda: hf.ZayaConfig(**_SHAPE),
    "inkling": lambda: hf.InklingTextConfig(
        **_SHAPE,
        head_dim=16,
        swa_head_dim=16,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        sliding_window_size=8,
        rel_extent=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding"],
    ),
    "minimax": lambda: hf.MiniMaxConfig(**_SHAPE, layer_types=_MIXED, num_local_experts=4),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        **_SHAPE, lru_width=64, attention_window_size=8, head_dim=16
    ),
    "rwkv": lambda: hf.RwkvConfig(**_PLAIN, attention_hidden_size=64, rescale_every=1),
    "xlstm": lambda: hf.xLSTMConfig(**_PLAIN, num_heads=4, qk_dim_factor=1.0, chunk_size=16),
    "gemma3n": lambda: hf.Gemma3nTextConfig(
        **_SHAPE | {"intermediate_size": [96] * 3},
        head_dim=16,
        num_kv_shared_layers=1,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 3,
    ),
}
"""Adding an architecture is adding one entry."""


ONE_BY_ONE = frozenset({"mamba", "falcon_mamba", "jamba", "zamba"})
"""Those that forget the state of a recurrence if there are several new tokens."""

SERIAL = frozenset({"minimax", "recurrent_gemma", "rwkv", "xlstm"})
"""Those that keep their state in a place of their own, and are served one at a time."""


@functools.cache
def noisy(name: str) -> Any:
    """Return a model whose weights make its tokens depend on all that came before."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.tie_word_embeddings = False
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * 0.15
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model


def make_checkpoint(folder: Path, name: str) -> Path:
    """Write a model and its tokenizer; return the folder."""
    noisy.__wrapped__(name).save_pretrained(folder)  # one that ran may have changed its weights
    byte_tokenizer().save_pretrained(folder)
    return folder
