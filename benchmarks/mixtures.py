"""Make a large random mixture of experts whose routing is like that of real models.

The model is a Qwen3-MoE. Random weights alone route nearly uniformly and reply with one token for
ever, so three parts are made:

- **A walk.** Token ``i`` is followed by token ``i + 1``, since row ``i + 1`` of ``lm_head`` is the
  embedding of token ``i``. A reply never repeats itself, whoever shares the batch.
- **A state that is kept in part.** Along the walk, embeddings are an autoregressive process: each
  keeps `Routing.keep` of the one before. Attention and experts add little to the hidden state, so
  routers see that state.
- **Popularity.** Each embedding has a constant part, and each router gives each of its experts a
  bias along it, of standard deviation `Routing.bias`.

`routing.py` measures the choices of the made model. Experts are stored one by one, as Qwen3-MoE's
are. Those of all layers are parts of one pool of random numbers, which is fast to make.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoint import bfloat16, write_safetensors, write_tokenizer

_CONSTANT = 0.5
"""The constant part of an embedding, of which the whole has length 1 for each dimension."""

_WEIGHT, _OUTPUT = 0.02, 0.004
"""Standard deviation of weights, and of those that add to the hidden state."""

_SHARPNESS = 2.0
"""Standard deviation of a router's logits, so that the routed experts' weights differ."""


@dataclass(frozen=True, slots=True)
class MixtureSize:
    """The size of a mixture.

    Attributes:
        hidden: Width; a multiple of ``head * heads_per_key``.
        layers: The number of layers.
        experts: Experts of a layer.
        routed: Experts that a token uses.
        inner: Width of an expert.
        vocabulary: The number of tokens.
        head: Width of an attention head.
        heads_per_key: Query heads that share a key head.
    """

    hidden: int = 1024
    layers: int = 20
    experts: int = 64
    routed: int = 4
    inner: int = 512
    vocabulary: int = 8192
    head: int = 64
    heads_per_key: int = 4

    @property
    def expert(self) -> int:
        """Bytes of an expert in bfloat16."""
        return 3 * self.hidden * self.inner * 2


@dataclass(frozen=True, slots=True)
class Routing:
    """How a mixture's routers choose.

    Attributes:
        keep: The correlation of a token's state with that of the token before.
        bias: Standard deviation of an expert's popularity, where that of the state is 1.
    """

    keep: float
    bias: float


SKEWED = Routing(keep=0.75, bias=0.6)
"""Like real models: see the table that `experts.py` prints."""

UNIFORM = Routing(keep=0.0, bias=0.0)
"""The hard case: each token chooses anew, and all experts are equally likely."""


def make_mixture(folder: Path, size: MixtureSize, routing: Routing) -> int:
    """Write a checkpoint with a file for each layer's experts; return the bytes of its weights."""
    pool = bfloat16(_random(0).standard_normal(2 * _values(size), dtype=np.float32) * _WEIGHT)
    names: dict[str, str] = {}
    total = 0
    for layer in range(size.layers):
        file = f"experts-{layer:05d}.safetensors"
        tensors = dict(_experts(size, layer, pool))
        write_safetensors(folder / file, tensors, "bfloat16")
        names |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    return total + _write_rest(folder, size, routing, names)


def make_variant(folder: Path, original: Path, size: MixtureSize, routing: Routing) -> int:
    """Write a checkpoint with the experts of another, which take no more space, and new routers."""
    names = json.loads((original / "model.safetensors.index.json").read_text())["weight_map"]
    names = {name: file for name, file in names.items() if file.startswith("experts-")}
    for file in sorted(set(names.values())):
        os.link(original / file, folder / file)
    experts = size.layers * size.experts * size.expert
    return experts + _write_rest(folder, size, routing, names)


def _write_rest(folder: Path, size: MixtureSize, routing: Routing, names: dict[str, str]) -> int:
    file = "dense.safetensors"
    tensors = dict(_dense(size, routing))
    write_safetensors(folder / file, tensors, "bfloat16")
    names = names | dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(_config(size)))
    write_tokenizer(folder, size.vocabulary)
    return sum(tensor.nbytes for tensor in tensors.values())


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _values(size: MixtureSize) -> int:
    """Return the number of weights of a layer's experts."""
    return size.experts * size.expert // 2


def _experts(size: MixtureSize, layer: int, pool: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a layer's experts, from another place of the pool for each layer."""
    at = int(_random(layer + 1).integers(_values(size)))
    matrix = size.hidden * size.inner
    for expert in range(size.experts):
        prefix = f"model.layers.{layer}.mlp.experts.{expert}"
        for name in ("gate_proj", "up_proj", "down_proj"):
            shape = (size.inner, size.hidden)
            shape = shape[::-1] if name == "down_proj" else shape
            yield f"{prefix}.{name}.weight", pool[at : at + matrix].reshape(shape)
            at += matrix


def _dense(size: MixtureSize, routing: Routing) -> Iterator[tuple[str, np.ndarray]]:
    random, hidden = _random(0), size.hidden
    keys = hidden // size.heads_per_key
    constant = random.choice(np.array([-1.0, 1.0], dtype=np.float32), hidden)
    walk = _walk(random, size, routing.keep, constant)
    embeddings = (1 - _CONSTANT**2) ** 0.5 * walk + _CONSTANT * constant
    yield "model.embed_tokens.weight", bfloat16(embeddings)
    yield "lm_head.weight", bfloat16(np.roll(walk, 1, axis=0) * _WEIGHT)
    yield "model.norm.weight", _ones(hidden)
    matrices = {
        "q_proj": ((hidden, hidden), _WEIGHT),
        "k_proj": ((keys, hidden), _WEIGHT),
        "v_proj": ((keys, hidden), _WEIGHT),
        "o_proj": ((hidden, hidden), _OUTPUT),
    }
    for layer in range(size.layers):
        block = f"model.layers.{layer}"
        for name, (shape, scale) in matrices.items():
            weight = random.standard_normal(shape, dtype=np.float32) * scale
            yield f"{block}.self_attn.{name}.weight", bfloat16(weight)
        yield f"{block}.self_attn.q_norm.weight", _ones(size.head)
        yield f"{block}.self_attn.k_norm.weight", _ones(size.head)
        yield f"{block}.input_layernorm.weight", _ones(hidden)
        yield f"{block}.post_attention_layernorm.weight", _ones(hidden)
        yield f"{block}.mlp.gate.weight", bfloat16(_router(random, size, routing.bias, constant))


def _walk(
    random: np.random.Generator, size: MixtureSize, keep: float, constant: np.ndarray
) -> np.ndarray:
    """Return a state for each token, at a right angle to the constant part."""
    walk = random.standard_normal((size.vocabulary, size.hidden), dtype=np.float32)
    for token in range(1, size.vocabulary):
        walk[token] = keep * walk[token - 1] + (1 - keep**2) ** 0.5 * walk[token]
    return _without(walk, constant)


def _router(
    random: np.random.Generator, size: MixtureSize, bias: float, constant: np.ndarray
) -> np.ndarray:
    """Return a router, to which the state and the constant part mean what `Routing` says."""
    rows = random.standard_normal((size.experts, size.hidden), dtype=np.float32)
    by_state = _without(rows, constant) / (size.hidden * (1 - _CONSTANT**2)) ** 0.5
    popularity = random.standard_normal((size.experts, 1), dtype=np.float32) * bias
    by_constant = popularity * constant / (size.hidden * _CONSTANT)
    router: np.ndarray = _SHARPNESS * (by_state + by_constant)
    return router


def _without(rows: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Return rows less their part along a direction of ones and minus ones."""
    return rows - np.outer(rows @ constant / len(constant), constant)


def _ones(count: int) -> np.ndarray:
    return bfloat16(np.ones(count, dtype=np.float32))


def _config(size: MixtureSize) -> dict[str, object]:
    heads = size.hidden // size.head
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "moe_intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // size.heads_per_key,
        "head_dim": size.head,
        "num_experts": size.experts,
        "num_experts_per_tok": size.routed,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "bfloat16",
    }
