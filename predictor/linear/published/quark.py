"""Configs of AMD's Quark."""

from __future__ import annotations

from predictor.errors import CheckpointError
from predictor.linear.formats.format import WeightFormat
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.mxfp4 import GROUP, Mxfp4
from predictor.linear.published.config import Config
from predictor.linear.published.layer_names import as_compressed_tensors, as_modelopt, every_layer
from predictor.linear.scheme import Rule, Scheme

_SCALE = "weight_scale"

_ROTATIONS = ("rotation", "quarot")
"""The algorithms that change what layers compute; others change the weights alone."""


def quark(config: Config) -> Scheme:
    """Return the scheme of method ``quark``.

    Raises:
        CheckpointError: A value cannot be served.
    """
    if config.values.get("layer_type_quant_config"):
        raise config.error("layer_type_quant_config", "is not empty, which cannot be served")
    if any(word in str(config.values.get("algo_config")).lower() for word in _ROTATIONS):
        raise config.error("algo_config", "rotates activations, which cannot be served")
    left_out = config.names("exclude")
    layers = config.mapping("layer_quant_config")
    rules = (
        Rule(as_modelopt([pattern], layers.where), _format(layers.mapping(pattern)))
        for pattern in layers.values
    )
    return Scheme(
        (
            Rule(as_compressed_tensors(left_out, config.where), None),
            Rule(as_modelopt(left_out, config.where), None),
            *rules,
            Rule(every_layer, _format(config.mapping("global_quant_config"))),
        )
    )


def _format(config: Config) -> WeightFormat:
    weight = config.mapping("weight")
    if not weight.values:
        raise CheckpointError(f"{config.where}: the weights are not quantised.")
    kind, sharing = weight.text("dtype"), weight.text("qscheme")
    if kind == "fp8_e4m3" and sharing in ("per_tensor", "per_channel"):
        return Fp8((int(sharing == "per_channel"), 0), scale=_SCALE)
    if kind == "fp4" and sharing == "per_group" and weight.text("scale_format", "e8m0") == "e8m0":
        weight.one_of("group_size", (GROUP,))
        return Mxfp4("weight", _SCALE)
    raise weight.error(
        "dtype",
        f"is {kind} {sharing}, and only fp8_e4m3 per_tensor or per_channel and fp4 per_group with "
        "scales in e8m0 can be served",
    )
