"""The models and resources that `plan.py` plans, with sizes worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


SHAPES = {"BLOOM-176B": _bloom(), "Llama-3-70B": _llama()}
RESOURCES = (
    Stated("2x24GiB", "64GiB", "400GiB"),
    Stated("8x80GiB", "256GiB", "400GiB"),
    Stated(None, "64GiB", "400GiB"),
    Stated("24GiB", "32GiB", "50GiB", fits=False),
)
"""The target is for the first. The last must be refused, for which planning runs many times."""
