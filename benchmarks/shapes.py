"""The models and resources that `plan.py` plans, with sizes worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as its paper and its config.json state it.

    Attributes:
        config: The content of config.json.
        weights: Bytes of all parameters in bfloat16, worked out from the shapes.
        kv: Bytes of KV cache for one sequence of full length.
        blocks: The number of blocks.
    """

    config: Mapping[str, Any]
    weights: int
    kv: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Stated:
    """Resources as flags of `predictor plan`; `fits` is whether they suffice for the models."""

    gpus: str | None
    memory: str
    disk: str
    fits: bool = True

    @property
    def title(self) -> str:
        """Return the resources in readable form."""
        return f"{self.gpus or 'no GPU'}, {self.memory}, {self.disk}"


def _bloom() -> Shape:
    hidden, layers, vocabulary, length = 14336, 70, 250880, 2048
    block = 12 * hidden**2 + 13 * hidden  # QKV 3, dense 1, MLP 4 + 4; nine biases, two norms
    parameters = vocabulary * hidden + layers * block + 4 * hidden  # two more norms; head tied
    config = {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "n_layer": layers,
        "n_head": 112,
        "seq_length": length,
        "dtype": "bfloat16",
    }
    return Shape(config, 2 * parameters, 2 * layers * hidden * 2 * length, layers)


def _llama() -> Shape:
    hidden, inner, layers, vocabulary, length = 8192, 28672, 80, 128256, 8192
    keys = hidden // 64 * 8
    block = 2 * hidden**2 + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    parameters = 2 * vocabulary * hidden + layers * block + hidden
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": length,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    return Shape(config, 2 * parameters, 2 * layers * keys * 2 * length, layers)


def _mixtral() -> Shape:
    hidden, inner, layers, vocabulary, experts = 6144, 16384, 56, 32768, 8
    attention = 2 * hidden**2 + 2 * hidden * 1024
    block = attention + 2 * hidden + experts * (hidden + 3 * hidden * inner)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": 48,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 65536,
    }
    return _mixture(config, hidden, vocabulary, [block] * layers, kv=2 * layers * 1024)


def _qwen3() -> Shape:
    hidden, inner, layers, vocabulary, experts = 4096, 1536, 94, 151936, 128
    attention = 2 * hidden * 64 * 128 + 2 * hidden * 4 * 128 + 2 * 128  # two norms of a head
    block = attention + 2 * hidden + experts * (hidden + 3 * hidden * inner)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "intermediate_size": 12288,
        "moe_intermediate_size": inner,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 40960,
    }
    return _mixture(config, hidden, vocabulary, [block] * layers, kv=2 * layers * 4 * 128)


def _deepseek() -> Shape:
    hidden, inner, vocabulary, experts, heads = 7168, 2048, 129280, 256, 128
    queries = hidden * 1536 + 1536 + 1536 * heads * (128 + 64)
    keys = hidden * (512 + 64) + 512 + 512 * heads * (128 + 128)
    attention = queries + keys + heads * 128 * hidden + 2 * hidden
    dense = attention + 3 * hidden * 18432
    mixture = attention + experts * hidden + (experts + 1) * 3 * hidden * inner
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": hidden,
        "intermediate_size": 18432,
        "moe_intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 163840,
    }
    blocks = [dense] * 3 + [mixture] * 58
    return _mixture(config, hidden, vocabulary, blocks, kv=61 * (512 + 64))


def _gpt_oss() -> Shape:
    hidden, layers, vocabulary, experts = 2880, 36, 201088, 128
    queries, keys = 64 * 64, 8 * 64
    attention = 2 * hidden * queries + queries + hidden + 2 * keys * (hidden + 1) + 64
    expert = 3 * hidden**2 + 3 * hidden  # with biases
    block = attention + 2 * hidden + experts * (hidden + 1 + expert)
    config = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "max_position_embeddings": 131072,
    }
    return _mixture(config, hidden, vocabulary, [block] * layers, kv=2 * layers * keys)


def _glm() -> Shape:
    hidden, inner, vocabulary, experts = 5120, 1536, 151552, 160
    queries, keys = 96 * 128, 8 * 128
    attention = 2 * hidden * queries + queries + 2 * keys * (hidden + 1) + 2 * 128 + 2 * hidden
    dense = attention + 3 * hidden * 12288
    mixture = attention + experts * hidden + (experts + 1) * 3 * hidden * inner
    config = {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "hidden_size": hidden,
        "intermediate_size": 12288,
        "moe_intermediate_size": inner,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "use_qk_norm": True,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 131072,
    }
    blocks = [dense] * 3 + [mixture] * 89
    return _mixture(config, hidden, vocabulary, blocks, kv=2 * 92 * keys)


def _llama4() -> Shape:
    hidden, inner, vocabulary, experts = 5120, 8192, 202048, 128
    attention = 2 * hidden**2 + 2 * hidden * 1024 + 2 * hidden
    dense = attention + 3 * hidden * 16384
    mixture = attention + experts * hidden + (experts + 1) * 3 * hidden * inner
    config = {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "intermediate_size_mlp": 16384,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "use_qk_norm": False,
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "max_position_embeddings": 1048576,
    }
    shape = _mixture(config, hidden, vocabulary, [dense, mixture] * 24, kv=2 * 48 * 1024)
    # three of four layers attend to chunks of 8192 tokens: they cache one less, and a counter
    return replace(shape, kv=shape.kv - 36 * (2 * 1024 * 2 - 8))


def _mixture(
    config: Mapping[str, Any], hidden: int, vocabulary: int, blocks: Sequence[int], *, kv: int
) -> Shape:
    """Return the shape of a mixture of experts, unquantised.

    Args:
        config: The content of config.json, without what all have.
        hidden: The hidden size.
        vocabulary: The number of tokens.
        blocks: The parameters of each block.
        kv: Numbers in the KV cache for a token of one sequence.
    """
    parameters = 2 * vocabulary * hidden + sum(blocks) + hidden
    common = {
        "num_key_value_heads": 8,
        "vocab_size": vocabulary,
        "num_hidden_layers": len(blocks),
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    return Shape(common | dict(config), 2 * parameters, 2 * kv * _LENGTH, len(blocks))


_LENGTH = 8192
"""Tokens of a sequence by default, where a model has more positions."""

SHAPES = {
    "BLOOM-176B": _bloom(),
    "Llama-3-70B": _llama(),
    "Mixtral-8x22B": _mixtral(),
    "Qwen3-235B-A22B": _qwen3(),
    "DeepSeek-V3": _deepseek(),
    "gpt-oss-120b": _gpt_oss(),
    "GLM-4.5": _glm(),
    "Llama-4-Maverick": _llama4(),
}
RESOURCES = (
    Stated("2x24GiB", "128GiB", "2TiB"),
    Stated("8x80GiB", "256GiB", "2TiB"),
    Stated(None, "128GiB", "2TiB"),
    Stated("24GiB", "32GiB", "50GiB", fits=False),
)
"""The target is for the first. The last must be refused, for which planning runs many times."""
