"""Quantisation configs of published checkpoints, and the formats that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from predictor.linear.formats.awq import Awq
from predictor.linear.formats.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from predictor.linear.formats.format import WeightFormat
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.gptq import Gptq
from predictor.linear.formats.integers import Integers, PackedIntegers
from predictor.linear.formats.mxfp4 import Mxfp4
from predictor.linear.formats.nvfp4 import Nvfp4

LAYER = "model.layers.1.mlp.up_proj"
ATTENTION = "model.layers.1.self_attn.q_proj"
EXPERT = "model.layers.1.mlp.experts.7.up_proj"
HEAD = "lm_head"

W4A16 = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 128,
    "actorder": "weight",
}


def compressed(weights: Mapping[str, Any], layout: str, **more: object) -> dict[str, Any]:
    """A config as llm-compressor writes it."""
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        **more,
    }


FP8_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True}
INT8_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
MICRO = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group"}
DOUBLY = {"quant_method": "bitsandbytes", "bnb_4bit_use_double_quant": True}
MX_OF_QUARK = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
FP8_OF_QUARK = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}

PUBLISHED: dict[str, tuple[dict[str, Any], WeightFormat]] = {
    "DeepSeek-V3": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        Fp8((128, 128)),
    ),
    "exponents as scales": (
        {"quant_method": "fp8", "scale_fmt": "ue8m0"},
        Fp8((128, 128), scale_dtype=torch.float8_e8m0fnu),
    ),
    "one scale": ({"quant_method": "fp8", "weight_block_size": None}, Fp8((0, 0))),
    "MXFP8": ({"quant_method": "mxfp8"}, Fp8((1, 32), scale_dtype=torch.uint8)),
    "FBGEMM": ({"quant_method": "fbgemm_fp8"}, Fp8((1, 0), scale="weight_scale")),
    "gpt-oss": ({"quant_method": "mxfp4"}, Mxfp4()),
    "W4A16": (compressed(W4A16, "pack-quantized"), PackedIntegers(4, 128)),
    "W4A16 with zero points": (
        compressed({**W4A16, "symmetric": False}, "pack-quantized"),
        PackedIntegers(4, 128, symmetric=False),
    ),
    "W8A16": (compressed(INT8_WEIGHTS, "pack-quantized"), PackedIntegers(8)),
    "W8A8": (compressed(INT8_WEIGHTS, "int-quantized"), Integers()),
    "int8 in blocks": (
        compressed(
            {**INT8_WEIGHTS, "strategy": "block", "block_structure": [128, 64]}, "naive-quantized"
        ),
        Integers(block=(128, 64)),
    ),
    "FP8": (
        compressed({**FP8_WEIGHTS, "strategy": "tensor"}, "float-quantized"),
        Fp8((0, 0), scale="weight_scale"),
    ),
    "FP8-dynamic": (
        compressed({**FP8_WEIGHTS, "strategy": "channel"}, "naive-quantized"),
        Fp8((1, 0), scale="weight_scale"),
    ),
    "FP8-block": (
        compressed(
            {**FP8_WEIGHTS, "strategy": "block", "block_structure": [128, 128]}, "float-quantized"
        ),
        Fp8((128, 128), scale="weight_scale"),
    ),
    "NVFP4": (compressed({**MICRO, "group_size": 16}, "nvfp4-pack-quantized"), Nvfp4()),
    "MXFP4": (
        compressed({**MICRO, "group_size": 32}, "mxfp4-pack-quantized"),
        Mxfp4("weight_packed", "weight_scale"),
    ),
    "GPTQ": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
        Gptq(4, 128),
    ),
    "GPTQ in act order": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": True, "sym": False},
        Gptq(8, 0, symmetric=False, act_order=True),
    ),
    "GPTQ v2": (
        {"quant_method": "gptq", "bits": 4, "desc_act": False, "checkpoint_format": "gptq_v2"},
        Gptq(4, 128, symmetric=False, zeros_less_one=False),
    ),
    "AWQ": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
        Awq(128),
    ),
    "AutoRound": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True},
        Gptq(4, 128),
    ),
    "AutoRound as AWQ": (
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"},
        Awq(128),
    ),
    "bnb-4bit": (
        {**DOUBLY, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        BitsAndBytes4("nf4"),
    ),
    "bnb-8bit": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, BitsAndBytes8()),
    "Quark": (
        {"quant_method": "quark", "global_quant_config": {"weight": MX_OF_QUARK}},
        Mxfp4("weight", "weight_scale"),
    ),
    "FP8 of Quark": (
        {"quant_method": "quark", "global_quant_config": {"weight": FP8_OF_QUARK}},
        Fp8((0, 0), scale="weight_scale"),
    ),
    "ModelOpt's own file": (
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
        Fp8((0, 0), scale="weight_scale"),
    ),
    "ModelOpt in config.json": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
        Nvfp4("weight", "weight_scale_2"),
    ),
}
