"""Small configs of the families of mixtures that transformers runs through its experts interface.

Every one has four blocks, eight experts and three of them for a token, unless it says otherwise.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

EXPERTS, ROUTED = 8, 3

_SHAPE: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_LOCAL = {"num_local_experts": EXPERTS, "num_experts_per_tok": ROUTED}
_PLAIN = {"num_experts": EXPERTS, "num_experts_per_tok": ROUTED}
_INNER = {"moe_intermediate_size": 32}
_ROUTED = {"n_routed_experts": EXPERTS, "num_experts_per_tok": ROUTED} | _INNER

_FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": _LOCAL,
    "qwen2_moe": _PLAIN | _INNER | {"shared_expert_intermediate_size": 48},
    "qwen3_moe": _PLAIN | _INNER | {"head_dim": 16},
    "deepseek_v2": _MLA | _ROUTED | _GROUPS | {"topk_method": "greedy", "n_shared_experts": 2},
    "deepseek_v3": _MLA | _ROUTED | _GROUPS | {"n_shared_experts": 1},
    "olmoe": _PLAIN,
    "granitemoe": _LOCAL,
    "glm4_moe": _ROUTED | _GROUPS | {"head_dim": 16},
    "gpt_oss": _LOCAL | {"head_dim": 16, "sliding_window": 8},
    "phimoe": _LOCAL | {"num_experts_per_tok": 2},  # its router always chooses two
    "minimax_m2": _LOCAL | {"head_dim": 16},
    "ernie4_5_moe": {"moe_num_experts": EXPERTS, "moe_k": ROUTED} | _INNER,
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": [1, 2, 3, 4], "head_dim": 16},
    "dots1": _ROUTED | _GROUPS | {"n_shared_experts": 1, "head_dim": 16},
}

FAMILIES = tuple(_FAMILIES)


def family_config(name: str, **other: Any) -> PreTrainedConfig:
    """Return the small config of a family.

    Args:
        name: Its model type.
        other: Entries that differ.
    """
    return AutoConfig.for_model(name, **(_SHAPE | _FAMILIES[name] | other))
