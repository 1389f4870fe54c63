"""Every way to quantise a checkpoint that is served, as its own library writes it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from tests.linear.formats import packers
from tests.linear.published_configs import compressed as config_of
from tests.quantization.checkpoints import Format, fp8_blocks

_GROUP = 32
_FP8: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True}
_INT4: dict[str, Any] = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": _GROUP,
}
_INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_FP4: dict[str, Any] = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group"}


def _per_tensor(weight: torch.Tensor) -> packers.Packed:
    tensors, values = packers.fp8(weight, (0, 0))
    scale = tensors["weight_scale"].reshape(1)
    return tensors | {"weight_scale": scale, "input_scale": torch.ones(1)}, values


def _of_modelopt(weight: torch.Tensor) -> packers.Packed:
    tensors, values = packers.fp8(weight, (0, 0))
    scale = tensors["weight_scale"].reshape(())
    return tensors | {"weight_scale": scale, "input_scale": torch.tensor(1.0)}, values


def _of_fbgemm(weight: torch.Tensor) -> packers.Packed:
    tensors, values = packers.fp8(weight, (1, 0))
    return tensors | {"input_scale_ub": torch.tensor([1200.0])}, values


def _modelopt(algorithm: str) -> Mapping[str, Any]:
    return {
        "producer": {"name": "modelopt", "version": "0.33.0"},
        "quantization": {
            "quant_algo": algorithm,
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head", "*router*", "*.mlp.gate"],
        },
    }


def _gptq(bits: int, *, act_order: bool = False, symmetric: bool = True) -> Format:
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": _GROUP,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": "gptq",
    }
    order = ", act-order" if act_order else ""
    pack = partial(packers.gptq, bits=bits, act_order=act_order, symmetric=symmetric)
    return Format(config, pack, f"gptq int{bits} (groups of {_GROUP}{order})")


def _bnb4(kind: str, *, nested: bool) -> Format:
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    pack = partial(packers.bitsandbytes4, kind=kind, nested=nested)
    return Format(config, pack, f"bitsandbytes {kind}")


FORMS: dict[str, Format] = {
    "fp8-block": fp8_blocks(32),
    "fp8-channel": Format(
        config_of({**_FP8, "strategy": "channel"}, "float-quantized"),
        partial(packers.fp8, block=(1, 0)),
        "fp8 (per channel)",
    ),
    "fp8-tensor": Format(
        config_of({**_FP8, "strategy": "tensor"}, "float-quantized"),
        _per_tensor,
        "fp8 (per tensor)",
    ),
    "fp8-modelopt": Format(
        _modelopt("FP8"), _of_modelopt, "fp8 (per tensor)", file="hf_quant_config.json"
    ),
    "fp8-fbgemm": Format({"quant_method": "fbgemm_fp8"}, _of_fbgemm, "fp8 (per channel)"),
    "mxfp8": Format({"quant_method": "mxfp8"}, packers.mxfp8, "mxfp8"),
    "mxfp4": Format(
        config_of({**_FP4, "group_size": 32}, "mxfp4-pack-quantized"),
        partial(packers.mxfp4, packed="weight_packed", scale="weight_scale"),
        "mxfp4",
    ),
    "nvfp4": Format(
        config_of({**_FP4, "group_size": 16}, "nvfp4-pack-quantized"), packers.nvfp4, "nvfp4"
    ),
    "nvfp4-modelopt": Format(
        _modelopt("NVFP4"), packers.nvfp4_of_modelopt, "nvfp4", file="hf_quant_config.json"
    ),
    "int4": Format(
        config_of(_INT4, "pack-quantized"),
        packers.packed_integers,
        f"int4 (groups of {_GROUP})",
    ),
    "int4-asymmetric": Format(
        config_of({**_INT4, "symmetric": False}, "pack-quantized"),
        partial(packers.packed_integers, symmetric=False),
        f"int4 (groups of {_GROUP})",
    ),
    "int4-act-order": Format(
        config_of({**_INT4, "actorder": "group"}, "pack-quantized"),
        packers.ordered_integers,
        f"int4 (groups of {_GROUP})",
    ),
    "int8": Format(config_of(_INT8, "int-quantized"), packers.integers, "int8 (per channel)"),
    "int8-packed": Format(
        config_of(_INT8, "pack-quantized"),
        partial(packers.packed_integers, bits=8, group=0),
        "int8 (per channel)",
    ),
    "gptq4": _gptq(4),
    "gptq4-act-order": _gptq(4, act_order=True, symmetric=False),
    "gptq8": _gptq(8),
    "gptq8-act-order": _gptq(8, act_order=True),
    "awq": Format(
        {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "version": "gemm"},
        packers.awq,
        f"awq int4 (groups of {_GROUP})",
    ),
    "nf4": _bnb4("nf4", nested=True),
    "fp4": _bnb4("fp4", nested=False),
    "bnb8": Format(
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        packers.bitsandbytes8,
        "bitsandbytes int8",
    ),
}

GPT_OSS = Format(
    {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
    packers.mxfp4,
    "mxfp4",
    of_gpt_oss=True,
)
"""gpt-oss as it is published: only its experts are packed, those of a layer in one tensor."""

MERGED_FP8 = fp8_blocks(32)
"""What transformers writes of a mixture that it has loaded in FP8."""
