"""Recognises in which formats a checkpoint is, from what its config says or its tensors show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from predictor.linear.formats.format import TensorSpec, WeightFormat
from predictor.linear.formats.fp8 import SCALES, Fp8
from predictor.linear.formats.nvfp4 import Nvfp4
from predictor.linear.formats.stored_tensors import ceil_div
from predictor.linear.published.bitsandbytes import bitsandbytes
from predictor.linear.published.compressed_tensors import compressed_tensors
from predictor.linear.published.config import Config
from predictor.linear.published.float_weights import fbgemm_fp8, fp8, mxfp4, mxfp8
from predictor.linear.published.integer_weights import auto_round, awq, gptq
from predictor.linear.published.modelopt import modelopt
from predictor.linear.published.quark import quark
from predictor.linear.scheme import Rule, Scheme

_METHODS: Mapping[str, Callable[[Config], Scheme]] = {
    "fp8": fp8,
    "mxfp8": mxfp8,
    "fbgemm_fp8": fbgemm_fp8,
    "mxfp4": mxfp4,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
    "auto-round": auto_round,
    "bitsandbytes": bitsandbytes,
    "modelopt": modelopt,
    "quark": quark,
}
"""The methods that can be served."""

_WEIGHT = "weight"
_PACKED = frozenset({"qweight", "weight_packed", "blocks"})
"""Roles that plain layers do not have."""

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_BLOCKS = ((128, 128), (1, 128), (1, 32))
"""The blocks that are published."""


def recognise(values: Mapping[str, Any], file: str) -> Scheme:
    """Return the formats that a config says a checkpoint is in.

    Args:
        values: The quantisation config.
        file: The file that it is in, for errors.

    Raises:
        CheckpointError: The method, or a value, cannot be served.
    """
    config = Config(values, file)
    method = _method(config)
    if method not in _METHODS:
        served = ", ".join(_METHODS)
        raise CheckpointError(
            f"{file}: The weights are quantised with {method}, which cannot be served; take the "
            f"model unquantised, or quantised with one of {served}."
        )
    return _METHODS[method](config)


def infer(stored: Mapping[str, TensorSpec]) -> Scheme:
    """Return the formats that the tensors of a checkpoint without a config show.

    Args:
        stored: All tensors of the checkpoint by their names.

    Raises:
        CheckpointError: Packed tensors do not show their format.
    """
    layers: dict[WeightFormat, set[str]] = {}
    for name, tensors in _by_layer(stored).items():
        if not _PACKED.isdisjoint(tensors) or tensors[_WEIGHT].dtype.itemsize == 1:
            layers.setdefault(_shown(name, tensors), set()).add(name)
    rules = (Rule(names.__contains__, weights) for weights, names in layers.items())
    return Scheme(tuple(rules))


def _method(config: Config) -> str:
    if "quant_method" in config:
        method = config.text("quant_method")
        return "modelopt" if method.startswith("modelopt") else method
    if "quantization" in config or "quant_algo" in config:
        return "modelopt"
    if config.values.get("load_in_4bit") or config.values.get("load_in_8bit"):
        return "bitsandbytes"
    return "compressed-tensors" if "config_groups" in config else config.text("quant_method")


def _by_layer(stored: Mapping[str, TensorSpec]) -> dict[str, dict[str, TensorSpec]]:
    """Return the tensors of each layer that has weights, by their roles."""
    layers: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in stored.items():
        layer, separator, rest = name.rpartition(f".{_WEIGHT}.")
        role = f"{_WEIGHT}.{rest}"
        if not separator:
            layer, _, role = name.rpartition(".")
        layers.setdefault(layer, {})[role] = spec
    return {
        name: roles
        for name, roles in layers.items()
        if _WEIGHT in roles or not _PACKED.isdisjoint(roles)
    }


def _shown(name: str, tensors: Mapping[str, TensorSpec]) -> WeightFormat:
    """Return the format that the tensors of a layer show."""
    for kind in ("nf4", "fp4"):
        if f"weight.quant_state.bitsandbytes__{kind}" in tensors:
            return BitsAndBytes4(kind, nested="weight.nested_absmax" in tensors)
    if "SCB" in tensors:
        return BitsAndBytes8()
    if "weight_scale_2" in tensors:
        return Nvfp4(_WEIGHT, "weight_scale_2")
    if "weight_global_scale" in tensors:
        return Nvfp4()
    scales = [role for role in SCALES if role in tensors]
    if _WEIGHT in tensors and scales and tensors[_WEIGHT].dtype in _FP8:
        block = _block(tensors[_WEIGHT].shape, tensors[scales[0]].shape)
        if block is not None:
            scale_dtype = tensors[scales[0]].dtype
            return Fp8(block, tensors[_WEIGHT].dtype, scales[0], scale_dtype)
    raise CheckpointError(
        f"{name} is packed as {', '.join(sorted(tensors))}, and no config says in which format; "
        "config.json needs the quantization_config that the weights were published with."
    )


def _block(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """Return what shares a scale, as `Fp8` has it; None if the shapes do not show it."""
    if math.prod(scale) == 1:
        return 0, 0
    if scale in (weight[:1], (weight[0], 1)):
        return 1, 0
    grid = scale[::2] if len(scale) == 4 else scale
    for height, width in _BLOCKS:
        if grid == (ceil_div(weight[0], height), ceil_div(weight[1], width)):
            return height, width
    return None
