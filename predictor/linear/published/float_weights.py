"""Configs of transformers' own methods whose weights are floats: fp8, mxfp8, fbgemm_fp8, mxfp4."""

from __future__ import annotations

import torch

from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.mxfp4 import Mxfp4
from predictor.linear.published.config import Config
from predictor.linear.published.layer_names import as_transformers, begins_with, every_layer
from predictor.linear.scheme import Rule, Scheme

_WITHOUT_BLOCKS = (0, 0)
_ROUTED_EXPERTS = r".*\.experts\.\d+\."

MXFP8 = Fp8((1, 32), scale_dtype=torch.uint8)


def fp8(config: Config) -> Scheme:
    """Return the scheme of method ``fp8``: DeepSeek's blocks, or one scale for a matrix.

    DeepSeek-V4 has routed experts in MXFP4.

    Raises:
        CheckpointError: A value cannot be served.
    """
    left_out = as_transformers(
        config.names("modules_to_not_convert", "ignored_layers"), config.where
    )
    is_null = config.values.get("weight_block_size", "missing") is None
    block = _WITHOUT_BLOCKS if is_null else config.block("weight_block_size", (128, 128))
    exponents = config.text("scale_fmt", "float") == "ue8m0"
    weights = Fp8(block, scale_dtype=torch.float8_e8m0fnu if exponents else torch.float32)
    rules = [Rule(left_out, None), Rule(every_layer, weights)]
    if config.text("expert_dtype", "fp8") == "fp4":
        experts = begins_with(_ROUTED_EXPERTS, config.where)
        rules.insert(1, Rule(experts, Mxfp4("weight", "scale")))
    return Scheme(tuple(rules))


def mxfp8(config: Config) -> Scheme:
    """Return the scheme of method ``mxfp8``.

    Raises:
        CheckpointError: A value cannot be served.
    """
    left_out = config.names("modules_to_not_convert", "ignored_layers")
    return Scheme.uniform(MXFP8, as_transformers(left_out, config.where))


def fbgemm_fp8(config: Config) -> Scheme:
    """Return the scheme of method ``fbgemm_fp8``: one scale for each output.

    Raises:
        CheckpointError: A value cannot be served.
    """
    left_out = as_transformers(config.names("modules_to_not_convert"), config.where)
    return Scheme.uniform(Fp8((1, 0), scale="weight_scale"), left_out)


def mxfp4(config: Config) -> Scheme:
    """Return the scheme of method ``mxfp4``: gpt-oss.

    Raises:
        CheckpointError: A value cannot be served.
    """
    left_out = as_transformers(config.names("modules_to_not_convert"), config.where)
    return Scheme.uniform(Mxfp4(), left_out)
