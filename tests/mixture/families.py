"""Small mixtures of the families that transformers runs through its experts interface.

Every one has four blocks, eight experts and three of them for a token, unless it says otherwise. A
family is one line: its model type, and the entries of its config that not all have.

Not here are mistral4, mistral_large4, muse_spark, inkling2 and glm5_next, which transformers does
not build as a causal language model, and the text part of qwen4_exp, inkling and dots3_note, whose
tables do not become small. With random weights zaya's router chooses one expert for all tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from predictor.private.experts import uses_experts_interface
from tests.checkpoints import byte_tokenizer

EXPERTS, ROUTED = 8, 3

SHAPE: dict[str, Any] = {
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

_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_chunk_size": 16}
_INDEXED = {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2}
_SHARED = {"shared_expert_intermediate_size": 48}
_HEAD = {"head_dim": 16}

_FURTHER: dict[str, dict[str, Any]] = {
    "afmoe": _PLAIN | _INNER | _HEAD,
    "aria_text": {"moe_num_experts": EXPERTS, "moe_topk": ROUTED},
    "axk1": _MLA | _ROUTED | _GROUPS,
    "axk2": _MLA | _ROUTED | _GROUPS | _INDEXED,
    "bailing_hybrid": _MLA
    | _ROUTED
    | _GROUPS
    | _HEAD
    | {"num_local_experts": EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2},
    "beam": _PLAIN
    | _INNER
    | _HEAD
    | {"n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", *["sparse"] * 3]},
    "cohere2_moe": _PLAIN | _HEAD | {"intermediate_size": 32},
    "deepseek_v32": _MLA | _ROUTED | _GROUPS | _INDEXED,
    "deepseek_v4": _ROUTED
    | _INDEXED
    | _HEAD
    | {"num_key_value_heads": 1, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 16},
    "exaone_moe": _PLAIN | _INNER | _HEAD | {"sliding_window": 8},
    "flex_olmo": _PLAIN,
    "flint": _PLAIN | _INNER | _HEAD | _SHARED,
    "gemma4_text": _PLAIN
    | _INNER
    | _HEAD
    | {"enable_moe_block": True, "top_k_experts": ROUTED}
    | {"vocab_size_per_layer_input": 264, "hidden_size_per_layer_input": 8},
    "glm4_moe_lite": _MLA | _ROUTED | _GROUPS,
    "glm_moe_dsa": _MLA | _ROUTED | _GROUPS | _INDEXED,
    "granitemoe_swa": _LOCAL,
    "granitemoehybrid": _LOCAL
    | _MAMBA
    | {"shared_intermediate_size": 48, "layer_types": ["mamba", "attention"] * 2},
    "granitemoeshared": _LOCAL | {"shared_intermediate_size": 48},
    "hy_v3": _PLAIN | _INNER | _HEAD,
    "hy_v4": _MLA | _ROUTED | _GROUPS | _INDEXED | _HEAD,
    "jamba": _PLAIN | {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _MLA
    | _LOCAL
    | _INNER
    | {"q_lora_rank": None, "linear_head_dim": 16, "linear_num_heads": 4}
    | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kolibri1": _PLAIN | _INNER | _HEAD,
    "laguna": _PLAIN | _INNER | _HEAD,
    "lfm2_moe": _PLAIN
    | _INNER
    | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2},
    "mellum": _PLAIN | _INNER | _HEAD,
    "mimo_v2_flash": _ROUTED | _GROUPS | _HEAD,
    "minimax": _LOCAL | _HEAD | {"block_size": 16},
    "nemotron_h": _ROUTED
    | {"mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 8, "n_groups": 1}
    | {"moe_shared_expert_intermediate_size": 48, "chunk_size": 16, "head_dim": 16}
    | {"layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "qwen3_5_moe_text": _PLAIN | _INNER | _LINEAR | _HEAD | _SHARED,
    "qwen3_next": _PLAIN | _INNER | _LINEAR | _HEAD | _SHARED,
    "solar_open": _ROUTED | _GROUPS | _HEAD,
}

FAMILIES = tuple(_FAMILIES)
"""The families whose tokens every run of the tests compares with transformers'."""

FURTHER_FAMILIES = tuple(_FURTHER)
"""Further families, most of which run with ``--full-grid`` alone."""

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral, one routed": ("mixtral", {"num_experts_per_tok": 1}),
    "qwen3_moe, all routed": ("qwen3_moe", {"num_experts_per_tok": EXPERTS}),
    "qwen3_moe, many": ("qwen3_moe", {"num_experts": 24}),
    "qwen2_moe, dense within": ("qwen2_moe", {"mlp_only_layers": [1]}),
    "deepseek_v3, groups": ("deepseek_v3", {"n_group": 4, "topk_group": 2}),
    "deepseek_v3, one has all": ("deepseek_v3", {}),
    "gpt_oss, one has all": ("gpt_oss", {}),
}

VARIANTS = tuple(_VARIANTS)
"""Families with other numbers of experts, or with another routing."""

HAS_ALL, HAS_NONE = 0, 1
"""The expert that every token uses, and the one that none uses, where one has all."""

_ROUTER_BIASES = ("e_score_correction_bias", "router.bias")


def family_config(name: str, **other: Any) -> PreTrainedConfig:
    """Return the small config of a family, or of a variant of one.

    Args:
        name: Its model type, or the variant's name.
        other: Entries that differ.
    """
    family, entries = _VARIANTS.get(name, (name, {}))
    own = (_FAMILIES | _FURTHER)[family]
    return AutoConfig.for_model(family, **(SHAPE | own | entries | other))


def make_family(
    folder: Path, name: str, *, dtype: torch.dtype = torch.float32, fused: bool = False
) -> Path:
    """Write a checkpoint of a family, or of a variant of one; return its folder.

    A file holds a few experts, so that the experts of one block lie in several.

    Args:
        folder: Where to write.
        name: The family or the variant.
        dtype: What the weights are stored in.
        fused: Whether each tensor holds all experts of a block, as the model has them. If not,
            experts are stored as they are published, which is one by one for most families.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family_config(name), dtype=dtype)
    _draw_weights(model)
    if dtype != torch.float32:
        _quieten_experts(model)
    if name.endswith("one has all"):
        _give_all_to_one(model)
    model.save_pretrained(folder, max_shard_size="100KB", save_original_format=not fused)
    byte_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def _draw_weights(model: Any) -> None:
    """Draw weights with which the best token stands out; norms and biases stay near what they were.

    The state also has the buffers that choose experts.
    """
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            noise = 0.15 * torch.randn(tensor.shape)
            tensor.copy_(noise if tensor.dim() > 1 else tensor.float() + noise)


@torch.no_grad()
def _give_all_to_one(model: Any) -> None:
    for name, tensor in model.state_dict().items():
        if name.endswith(_ROUTER_BIASES):
            tensor[HAS_ALL] += 20
            tensor[HAS_NONE] -= 20


@torch.no_grad()
def _quieten_experts(model: Any) -> None:
    """Have experts change little: in half precision a router may choose the next best instead."""
    for module in model.modules():
        if uses_experts_interface(module):
            module.down_proj *= 0.25
