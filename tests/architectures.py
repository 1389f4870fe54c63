"""Tiny models of architectures that no other table of the tests has, each by its model type.

Adding one is adding a line: `SIZES` are what a config may have, and the line has what differs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.checkpoints import VOCABULARY

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "embedding_size")
_INNER_WIDTHS = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "dff")
SIZES: dict[str, Any] = {
    **dict.fromkeys(_LAYERS, 3),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_WIDTHS, 64),
    **dict.fromkeys(_INNER_WIDTHS, 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    # With few heads, an indexer gives many tokens no score at all, and the choice is arbitrary.
    "index_topk": 8,
    "index_head_dim": 16,
    "index_n_heads": 32,
}

_EQUAL_HEADS = {"num_key_value_heads": 4}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "axk2": _EQUAL_HEADS,
    "bert": {},
    "bert-generation": {},
    "biogpt": {},
    "bitnet": {},
    "camembert": {},
    "codegen": {"rotary_dim": 8},
    "cohere": {},
    "cohere2": {},
    "ctrl": {},
    "cwm": {},
    "data2vec-text": {},
    "deepseek_v32": _EQUAL_HEADS,
    "diffllama": {},
    "doge": {},
    "electra": {},
    "ernie": {},
    "ernie4_5": {},
    "exaone4": {},
    "gemma": {},
    "gemma2": {},
    "glm": {},
    "glm4": {},
    "glm_moe_dsa": _EQUAL_HEADS,
    "gpt-sw3": {},
    "gpt_bigcode": {},
    "granite": {},
    "granite_swa": {},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hy_v4": {},
    "hyperclovax": {},
    "inkling2_text": {},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "jetmoe": {},
    "llama4_text": {},
    "megatron-bert": {},
    "minimax_m3_vl_text": {},
}

QUICK = {"deepseek_v32", "camembert", "cohere2"}
"""One of each kind; the others run with ``--full-grid`` alone."""


def tiny_config(name: str) -> Any:
    """Return the small config of an architecture."""
    default = AutoConfig.for_model(name)
    sizes = {key: value for key, value in SIZES.items() if hasattr(default, key)}
    config = AutoConfig.for_model(name, **(sizes | ARCHITECTURES[name]))
    config.is_decoder, config.tie_word_embeddings = True, False
    return config


@functools.cache
def noisy(name: str) -> Any:
    """Return a model whose weights make its tokens depend on all that came before."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * 0.15
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model
