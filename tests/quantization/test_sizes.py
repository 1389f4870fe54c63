"""Plans of published checkpoints, from their config alone: the size of the tensors served.

The sizes of the files are worked out here from parameter counts and from the formats' definitions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.shapes import SHAPES
from predictor import startup
from predictor.profiling.footprint import build_on_meta
from predictor.settings import read_settings
from predictor.verification.model import verify_model
from tests.linear.published_configs import FP8_WEIGHTS, compressed

CLOSE = 0.005

HALF, FLOAT = 2, 4
"""Bytes of a number in bfloat16 or float16, and in float32."""


def deepseek() -> int:
    """DeepSeek-V3: 61 blocks in FP8 with a float32 scale for each 128 x 128 weights.

    Embeddings, head, norms and routers are in bfloat16, the router's correction in float32. The
    files hold another block, which predicts a further token, and which transformers drops.
    """
    hidden, heads = 7168, 128
    attention = [
        (1536, hidden),
        (heads * 192, 1536),
        (512 + 64, hidden),
        (heads * 256, 512),
        (hidden, heads * 128),
    ]
    expert = [(2048, hidden), (2048, hidden), (hidden, 2048)]
    dense = [(18432, hidden), (18432, hidden), (hidden, 18432)]
    matrices = 61 * attention + 3 * dense + 58 * 257 * expert
    packed = sum(
        rows * columns + FLOAT * -(-rows // 128) * -(-columns // 128) for rows, columns in matrices
    )
    norms = 61 * (2 * hidden + 1536 + 512) + hidden
    routers = 58 * (256 * hidden * HALF + 256 * FLOAT)
    return packed + HALF * (2 * 129280 * hidden + norms) + routers


def gpt_oss() -> int:
    """gpt-oss-120b: experts in MXFP4, a byte for two weights and one for the scale of 32."""
    hidden, layers, vocabulary, experts = 2880, 36, 201088, 128
    matrices = layers * experts * 3 * hidden**2
    biases = layers * experts * 3 * hidden
    queries, keys = 64 * 64, 8 * 64
    attention = 2 * hidden * queries + queries + hidden + 2 * keys * (hidden + 1) + 64
    rest = 2 * vocabulary * hidden + layers * (attention + 2 * hidden + experts * (hidden + 1))
    return matrices // 2 + matrices // 32 + HALF * (biases + rest + hidden)


HIDDEN, INNER, KEYS, BLOCKS, VOCABULARY = 8192, 28672, 1024, 80, 128256
LLAMA = BLOCKS * [
    *2 * [(HIDDEN, HIDDEN)],
    *2 * [(KEYS, HIDDEN)],
    *2 * [(INNER, HIDDEN)],
    (HIDDEN, INNER),
]
"""The outputs and inputs of the packed matrices of Llama-3.1-70B."""

UNPACKED = HALF * (2 * VOCABULARY * HIDDEN + (2 * BLOCKS + 1) * HIDDEN)
"""Its embeddings, head and norms."""


def llama_fp8() -> int:
    """A byte a weight, and a bfloat16 scale for each output."""
    return UNPACKED + sum(rows * columns + HALF * rows for rows, columns in LLAMA)


def llama_awq() -> int:
    """Half a byte a weight; for 128 inputs of an output half a byte of zero point and a scale."""
    groups = sum(rows * columns // 128 for rows, columns in LLAMA)
    return UNPACKED + sum(rows * columns // 2 for rows, columns in LLAMA) + groups * 5 // 2


def llama_gptq() -> int:
    """Half a byte a weight, a scale for 128 inputs of an output, and the group of each input.

    The files have zero points too, another 0.8 %. Those of symmetric weights are all the same, and
    are not served.
    """
    groups = sum(rows * columns // 128 for rows, columns in LLAMA)
    weights = sum(rows * columns // 2 + FLOAT * columns for rows, columns in LLAMA)
    return UNPACKED + weights + HALF * groups


_FP8 = compressed({**FP8_WEIGHTS, "strategy": "channel"}, "float-quantized")
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
_MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}

PUBLISHED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "DeepSeek-V3": ("DeepSeek-V3", _BLOCKS, deepseek(), "fp8 (block 128x128)"),
    "gpt-oss-120b": ("gpt-oss-120b", _MXFP4, gpt_oss(), "mxfp4"),
    "Llama-3.1-70B-FP8": ("Llama-3-70B", _FP8, llama_fp8(), "fp8 (per channel)"),
    "Llama-3.1-70B-AWQ": ("Llama-3-70B", _AWQ, llama_awq(), "awq int4 (groups of 128)"),
    "Llama-3.1-70B-GPTQ": (
        "Llama-3-70B",
        _GPTQ,
        llama_gptq(),
        "gptq int4 (groups of 128, act-order)",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_plan_of_a_config_has_the_size_of_the_files(tmp_path: Path, name: str) -> None:
    shape, quantization, size, title = PUBLISHED[name]
    config = {**SHAPES[shape].config, "quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = read_settings({"model_dir": str(tmp_path)}, environ={})
    checkpoint = startup.open_checkpoint(settings, needs_weights=False)
    skeleton = build_on_meta(checkpoint.config, "bfloat16", checkpoint.task)
    assert verify_model(skeleton, checkpoint, "auto")[1].title == title
    served = sum(parameter.nbytes for parameter in skeleton.parameters())
    assert served == pytest.approx(size, rel=CLOSE)


def test_the_sizes_are_about_those_that_are_known() -> None:
    """In billions of bytes, as the repositories list them: 688.6 with the further block, 65.2."""
    further = 14.0
    assert deepseek() / 1e9 + further == pytest.approx(688.6, rel=0.01)
    assert gpt_oss() / 1e9 == pytest.approx(65.2, rel=CLOSE)
