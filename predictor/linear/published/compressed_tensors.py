"""Configs of compressed-tensors, which llm-compressor writes.

Activations stay in the dtype that the model is served in, so what is said of them is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter

import torch

from predictor.errors import CheckpointError
from predictor.linear.formats.format import WeightFormat
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.integers import Integers, PackedIntegers
from predictor.linear.formats.mxfp4 import Mxfp4
from predictor.linear.formats.nvfp4 import Nvfp4
from predictor.linear.published.config import Config
from predictor.linear.published.layer_names import as_compressed_tensors, every_layer, is_regex
from predictor.linear.scheme import Rule, Scheme

_LINEAR = "Linear"
"""The target that means all linear layers."""

_LAYOUTS = {
    "pack-quantized": ("int",),
    "int-quantized": ("int",),
    "float-quantized": ("float",),
    "naive-quantized": ("int", "float"),
    "nvfp4-pack-quantized": ("float",),
    "mxfp4-pack-quantized": ("float",),
    "mxfp8-quantized": ("float",),
}
"""The layouts that can be served, and the types of their weights."""

_SCALE = "weight_scale"


def compressed_tensors(config: Config) -> Scheme:
    """Return the scheme of method ``compressed-tensors``.

    Raises:
        CheckpointError: A value cannot be served.
    """
    _refuse_sparse(config)
    left_out = Rule(as_compressed_tensors(config.names("ignore"), config.where), None)
    groups = config.mapping("config_groups")
    entries = [entry for name in groups.values for entry in _entries(groups.mapping(name), config)]
    rules = [rule for _, rule in sorted(entries, key=itemgetter(0))]
    if not rules and "kv_cache_scheme" not in config:
        raise config.error("config_groups", "names no layers")
    return Scheme((left_out, *rules))


def _entries(group: Config, config: Config) -> Iterator[tuple[int, Rule]]:
    """Yield the rules of a group and their places: names come first, then expressions, then all."""
    weights = _format(group, config)
    targets = group.names("targets")
    if not targets:
        raise group.error("targets", "names no layers")
    names = [target for target in targets if target != _LINEAR]
    regexes = [target for target in names if is_regex(target)]
    yield 0, Rule(frozenset(names).__contains__, weights)
    yield 1, Rule(as_compressed_tensors(regexes, group.where), weights)
    if _LINEAR in targets:
        yield 2, Rule(every_layer, weights)


def _refuse_sparse(config: Config) -> None:
    sparsity = config.mapping("sparsity_config")
    if sparsity.text("format", "dense") != "dense":
        raise sparsity.error("format", f"is {sparsity.text('format')}, which cannot be served")
    if config.mapping("transform_config").values:
        raise config.error("transform_config", "transforms activations, which cannot be served")


def _format(group: Config, config: Config) -> WeightFormat:
    weights = group.mapping("weights")
    if not weights.values:
        raise CheckpointError(f"{group.where}: only activations are quantised; use the original.")
    layout = group.text("format", config.text("format", "dense"))
    if layout not in _LAYOUTS:
        served = ", ".join(_LAYOUTS)
        raise group.error("format", f"is {layout}, and only {served} can be served")
    kind = weights.text("type", "int")
    if kind not in _LAYOUTS[layout]:
        raise weights.error("type", f"is {kind}, which does not fit the format {layout}")
    if kind == "float":
        return _floats(weights, layout)
    return _packed_integers(weights) if layout == "pack-quantized" else _integers(weights)


def _floats(weights: Config, layout: str) -> WeightFormat:
    if not weights.flag("symmetric", default=True):
        raise weights.error("symmetric", "is false, which cannot be served for floats")
    if layout == "nvfp4-pack-quantized":
        weights.one_of("num_bits", (4,))
        weights.one_of("group_size", (16,), 16)
        return Nvfp4()
    if layout == "mxfp4-pack-quantized":
        weights.one_of("num_bits", (4,))
        weights.one_of("group_size", (32,), 32)
        return Mxfp4("weight_packed", _SCALE)
    weights.one_of("num_bits", (8,))
    if layout == "mxfp8-quantized":
        weights.one_of("group_size", (32,), 32)
        return Fp8((1, 32), scale=_SCALE, scale_dtype=torch.uint8)
    return Fp8(_float_block(weights), scale=_SCALE)


def _float_block(weights: Config) -> tuple[int, int]:
    strategy = _strategy(weights)
    if strategy == "block":
        return weights.block("block_structure")
    if strategy == "group":
        return 1, weights.integer("group_size")
    return (1, 0) if strategy == "channel" else (0, 0)


def _integers(weights: Config) -> WeightFormat:
    weights.one_of("num_bits", (4, 8), 8)
    packed = _packed_like(weights, 8)
    integers = Integers(packed.group, packed.symmetric, packed.whole)
    if _strategy(weights) != "block":
        return integers
    if not integers.symmetric:
        raise weights.error("symmetric", "is false, which cannot be served for blocks")
    return replace(integers, block=weights.block("block_structure"))


def _packed_integers(weights: Config) -> WeightFormat:
    if _strategy(weights) == "block":
        raise weights.error("strategy", "is block, which cannot be served for packed integers")
    return _packed_like(weights, weights.one_of("num_bits", (4, 8), 8))


def _packed_like(weights: Config, bits: int) -> PackedIntegers:
    strategy = _strategy(weights)
    group = weights.integer("group_size") if strategy == "group" else 0
    symmetric = weights.flag("symmetric", default=True)
    return PackedIntegers(bits, group, symmetric, whole=strategy == "tensor")


def _strategy(weights: Config) -> str:
    """Return what shares a scale: ``tensor``, ``channel``, ``group`` or ``block``."""
    if "strategy" not in weights:
        if "group_size" not in weights:
            return "tensor"
        return "group" if weights.group_size() else "channel"
    strategy = weights.text("strategy")
    if strategy not in ("tensor", "channel", "group", "block"):
        raise weights.error("strategy", f"is {strategy}, which cannot be served for weights")
    return strategy
