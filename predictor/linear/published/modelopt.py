"""Configs of NVIDIA's ModelOpt: ``hf_quant_config.json``, or a part of ``config.json``."""

from __future__ import annotations

import torch

from predictor.linear.formats.format import WeightFormat
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.nvfp4 import Nvfp4
from predictor.linear.published.config import Config
from predictor.linear.published.layer_names import as_modelopt, in_modules
from predictor.linear.scheme import Rule, Scheme

_NVFP4 = Nvfp4("weight", "weight_scale_2")
_FORMATS: dict[str, WeightFormat] = {
    "fp8": Fp8((0, 0), scale="weight_scale"),
    "fp8_per_channel_per_token": Fp8((1, 0), scale="weight_scale"),
    "fp8_pb_wo": Fp8((128, 128), scale="weight_scale"),
    "mxfp8": Fp8((1, 32), scale="weight_scale", scale_dtype=torch.uint8),
    "nvfp4": _NVFP4,
    "w4a16_nvfp4": _NVFP4,
}
"""The formats by the algorithms that they are named after."""

_MIXED = "mixed_precision"


def modelopt(config: Config) -> Scheme:
    """Return the scheme of method ``modelopt``. Caches of keys and values stay as they are served.

    Raises:
        CheckpointError: A value cannot be served.
    """
    if "quantization" in config:
        config = config.mapping("quantization")
    left_out = as_modelopt(config.names("exclude_modules", "ignore"), config.where)
    if "quant_algo" not in config and "kv_cache_quant_algo" in config:
        return Scheme(())
    if config.text("quant_algo") != _MIXED:
        return Scheme.uniform(_format(config), left_out)
    layers = config.mapping("quantized_layers")
    names: dict[WeightFormat, list[str]] = {}
    for name in layers.values:
        names.setdefault(_format(layers.mapping(name)), []).append(name)
    rules = (Rule(in_modules(names[weights]), weights) for weights in names)
    return Scheme((Rule(left_out, None), *rules))


def _format(config: Config) -> WeightFormat:
    algorithm = config.text("quant_algo")
    if algorithm not in _FORMATS:
        served = ", ".join(_FORMATS).upper()
        sentence = f"is {algorithm.upper()}, and only {served} can be served"
        raise config.error("quant_algo", sentence)
    return _FORMATS[algorithm]
