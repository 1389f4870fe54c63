"""Checkpoints whose config and tensors compressed-tensors itself writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationScheme,
    preset_name_to_scheme,
)

from predictor.linear.schemes import recognise
from tests.linear.formats.checks import specs

OUT, IN = 320, 256

PRESETS = {
    "W4A16": ("pack-quantized", "int4 (groups of 128)"),
    "W4A16_ASYM": ("pack-quantized", "int4 (groups of 128)"),
    "W8A16": ("pack-quantized", "int8 (groups of 128)"),
    "W8A8": ("int-quantized", "int8 (per channel)"),
    "FP8": ("float-quantized", "fp8 (per tensor)"),
    "FP8_DYNAMIC": ("float-quantized", "fp8 (per channel)"),
    "FP8_BLOCK": ("float-quantized", "fp8 (block 128x128)"),
    "NVFP4A16": ("nvfp4-pack-quantized", "nvfp4"),
    "MXFP4A16": ("mxfp4-pack-quantized", "mxfp4"),
    "MXFP8A16": ("mxfp8-quantized", "mxfp8"),
}


def written_config(scheme: QuantizationScheme, layout: str) -> dict[str, Any]:
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=layout, ignore=["lm_head"]
    )
    values: dict[str, Any] = json.loads(config.model_dump_json())
    return values


def random_scale(scheme: QuantizationScheme) -> torch.Tensor:
    args = scheme.weights
    grids = {
        "tensor": (1,),
        "channel": (OUT, 1),
        "block": (3, 2),
        "group": (OUT, IN // (args.group_size or IN)),
        "tensor_group": (OUT, IN // 16),
    }
    return torch.rand(grids[args.strategy]) * 0.01 + 0.01


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_those_of_the_library(preset: str) -> None:
    layout, title = PRESETS[preset]
    scheme = preset_name_to_scheme(preset, ["Linear"])
    state = {"weight": torch.randn(OUT, IN), "weight_scale": random_scale(scheme)}
    if layout == "nvfp4-pack-quantized":
        state["weight_scale"] = state["weight_scale"] * 10_000
        state["weight_global_scale"] = torch.tensor([10_000.0])
    if not scheme.weights.symmetric:
        state["weight_zero_point"] = torch.randint(-8, 8, (OUT, 2), dtype=torch.int8)
    compressor = BaseCompressor.get_value_from_registry(layout)
    packed = dict(compressor.compress(dict(state), scheme))
    expected = compressor.decompress(dict(packed), scheme)["weight"]

    recognised = recognise(written_config(scheme, layout), "config.json")
    assert recognised.title == title
    assert recognised.format_of("lm_head") is None
    weights = recognised.format_of("model.layers.0.mlp.up_proj")
    assert weights is not None
    weights.accept(specs(packed), OUT, IN)
    unpacked = weights.unpack(packed, 0, OUT, torch.float32)
    rounding = 2**-8 if expected.dtype == torch.bfloat16 else 0
    torch.testing.assert_close(unpacked, expected.float(), rtol=rounding, atol=0)
    assert (unpacked - state["weight"]).abs().mean() < 1
