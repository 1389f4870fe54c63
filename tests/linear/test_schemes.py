from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import CheckpointError
from predictor.linear.formats.awq import Awq
from predictor.linear.formats.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from predictor.linear.formats.format import TensorSpec, WeightFormat
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.gptq import Gptq
from predictor.linear.formats.integers import Integers, PackedIntegers
from predictor.linear.formats.mxfp4 import Mxfp4
from predictor.linear.formats.nvfp4 import Nvfp4
from predictor.linear.schemes import infer, recognise

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


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_recognised(name: str) -> None:
    values, expected = PUBLISHED[name]
    scheme = recognise(values, "config.json")
    assert scheme.format_of(LAYER) == expected
    assert scheme.title == expected.title


@pytest.mark.parametrize(
    ("values", "left_out"),
    [
        ({"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]}, [HEAD]),
        ({"quant_method": "fp8", "ignored_layers": ["model.layers.1.self_attn"]}, [ATTENTION]),
        (
            {
                "quant_method": "mxfp4",
                "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
            },
            [ATTENTION, HEAD],
        ),
        (compressed(W4A16, "pack-quantized", ignore=["re:.*self_attn.*"]), [ATTENTION]),
        ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["self_attn"]}, [ATTENTION]),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, [HEAD]),
        (
            {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "*self_attn*"]}},
            [ATTENTION, HEAD],
        ),
        (
            {
                "quantization": {
                    "quant_algo": "FP8",
                    "exclude_modules": ["model.layers.1.self_attn"],
                }
            },
            [ATTENTION],
        ),
        (
            {
                "quant_method": "gptq",
                "bits": 4,
                "modules_in_block_to_quantize": [["mlp.up_proj"], ["mlp.down_proj"]],
            },
            [ATTENTION, HEAD],
        ),
        (
            {
                "quant_method": "auto-round",
                "bits": 4,
                "extra_config": {ATTENTION: {"bits": 16}, HEAD: {}},
            },
            [ATTENTION, HEAD],
        ),
    ],
)
def test_layers_are_left_out(values: dict[str, Any], left_out: list[str]) -> None:
    scheme = recognise(values, "config.json")
    assert [name for name in (LAYER, ATTENTION, HEAD) if not scheme.format_of(name)] == left_out


def test_the_target_that_names_a_layer_best_decides() -> None:
    values = compressed(W4A16, "mixed-precision")
    linear = {"targets": ["Linear"], "format": "pack-quantized", "weights": W4A16}
    regex = {"targets": ["re:.*self_attn"], "format": "int-quantized", "weights": INT8_WEIGHTS}
    eight = {**INT8_WEIGHTS, "strategy": "tensor"}
    exact = {"targets": [ATTENTION], "format": "pack-quantized", "weights": eight}
    values["config_groups"] = {"a": linear, "b": regex, "c": exact}
    scheme = recognise(values, "config.json")
    assert scheme.format_of(LAYER) == PackedIntegers(4, 128)
    assert scheme.format_of("model.layers.2.self_attn.q_proj") == Integers()
    assert scheme.format_of(ATTENTION) == PackedIntegers(8, whole=True)
    assert scheme.title == "int4 (groups of 128), int8 (per channel), int8 (per tensor)"


def test_gptqmodels_dynamic_rules_change_layers_and_leave_some_out() -> None:
    values = {
        "quant_method": "gptq",
        "bits": 4,
        "desc_act": False,
        "sym": True,
        "dynamic": {r"-:.*self_attn": {}, r"+:.*\.experts\.": {"bits": 8, "group_size": 64}},
    }
    scheme = recognise(values, "config.json")
    assert scheme.format_of(LAYER) == Gptq(4, 128)
    assert scheme.format_of(EXPERT) == Gptq(8, 64)
    assert scheme.format_of(ATTENTION) is None


def test_modelopts_mixed_precision_names_the_format_of_each_layer() -> None:
    layers = {LAYER: {"quant_algo": "NVFP4", "group_size": 16}, ATTENTION: {"quant_algo": "FP8"}}
    values = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    scheme = recognise(values, "hf_quant_config.json")
    assert scheme.format_of(LAYER) == Nvfp4("weight", "weight_scale_2")
    assert scheme.format_of(ATTENTION) == Fp8((0, 0), scale="weight_scale")
    assert scheme.format_of(HEAD) is None


def test_quark_names_layers_and_patterns_of_layers() -> None:
    scheme = recognise(
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": MX_OF_QUARK},
            "layer_quant_config": {"*self_attn*": {"weight": FP8_OF_QUARK}},
            "exclude": ["lm_head", "re:.*experts.*"],
        },
        "config.json",
    )
    assert scheme.format_of(LAYER) == Mxfp4("weight", "weight_scale")
    assert scheme.format_of(ATTENTION) == Fp8((0, 0), scale="weight_scale")
    assert scheme.format_of(HEAD) is None
    assert scheme.format_of(EXPERT) is None


def test_deepseek_v4_has_routed_experts_in_mxfp4() -> None:
    scheme = recognise({"quant_method": "fp8", "expert_dtype": "fp4"}, "config.json")
    assert scheme.format_of(EXPERT) == Mxfp4("weight", "scale")
    assert scheme.format_of("model.layers.1.mlp.shared_experts.up_proj") == Fp8()


def test_caches_alone_leave_the_weights_as_they_are() -> None:
    cache = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    assert recognise(cache, "hf_quant_config.json").format_of(LAYER) is None
    compressed_cache = {
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    assert recognise(compressed_cache, "config.json").format_of(LAYER) is None


def test_four_bits_of_bitsandbytes_are_told_the_inputs_of_a_layer() -> None:
    scheme = recognise(PUBLISHED["bnb-4bit"][0], "config.json")
    assert scheme.format_of(LAYER, 4096) == BitsAndBytes4("nf4", 4096)


GPTQ = PUBLISHED["GPTQ"][0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"quant_method": "aqlm"}, "quantised with aqlm, which cannot be served; take the model"),
        ({"quant_method": "torchao"}, "quantised with torchao"),
        ({"bits": 4}, "quant_method is missing"),
        ({"quant_method": 4}, "quant_method is 4 instead of a text"),
        ({**GPTQ, "bits": 5}, "bits is 5, and only 4 or 8 can be served"),
        ({**GPTQ, "bits": "4"}, "bits is '4' instead of a whole number"),
        ({**GPTQ, "bits": True}, "bits is True instead of a whole number"),
        ({**GPTQ, "group_size": -2}, "group_size is -2 instead of a whole number of 1 or more"),
        ({**GPTQ, "group_size": 0}, "group_size is 0 instead of a whole number of 1 or more"),
        ({**GPTQ, "desc_act": "yes"}, "desc_act is 'yes' instead of true or false"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "is 'marlin', and only gptq or gptq_v2 can be"),
        ({**GPTQ, "dynamic": {"-:(": {}}}, r"dynamic: '\(' is not a regular expression"),
        ({**GPTQ, "dynamic": ["-:a"]}, "dynamic is not a mapping"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv', and only gemm"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"is \[128\] instead of two sizes"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "is not a list of names"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit is not true"),
        (
            {**DOUBLY, "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
            "bnb_4bit_quant_storage is bfloat16, and only uint8",
        ),
        (
            {"quantization": {"quant_algo": "W4A16_AWQ"}},
            "hf, quantization: quant_algo is W4A16_AWQ, and only FP8, ",
        ),
        (compressed(W4A16, "marlin-24"), "format is marlin-24, and only pack-quantized, "),
        (compressed(W4A16, "dense"), "format is dense, and only pack-quantized, "),
        (compressed({**W4A16, "num_bits": 3}, "pack-quantized"), "weights: num_bits is 3, and"),
        (compressed(FP8_WEIGHTS, "pack-quantized"), "type is float, which does not fit the format"),
        (
            compressed(W4A16, "pack-quantized", sparsity_config={"format": "sparse-24-bitmask"}),
            "format is sparse-24-bitmask, which cannot be served",
        ),
        (
            compressed(W4A16, "pack-quantized", transform_config={"config_groups": {"a": 1}}),
            "transform_config transforms activations",
        ),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int4"}}},
            "weight: qscheme is missing",
        ),
        (
            {"quant_method": "quark", "algo_config": [{"name": "rotation"}]},
            "algo_config rotates activations, which cannot be served",
        ),
        (compressed(W4A16, "pack-quantized", config_groups={}), "config_groups names no layers"),
        (
            compressed(W4A16, "int-quantized", config_groups={"a": {"weights": W4A16}}),
            "config_groups, a: targets names no layers",
        ),
        (compressed({}, "int-quantized"), "group_0: only activations are quantised"),
        (
            {**PUBLISHED["AutoRound"][0], "extra_config": {LAYER: {"bits": 8}}},
            "layers with bits of their own",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as caught:
        recognise(values, "hf")
    assert str(caught.value).startswith("hf")
    assert str(caught.value).endswith(".")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@given(name=st.sampled_from(sorted(PUBLISHED)), key=st.integers(0, 9), junk=JUNK)
def test_any_value_is_understood_or_refused(name: str, key: int, junk: object) -> None:
    values = PUBLISHED[name][0]
    keys = [*values, "ignore", "config_groups", "dynamic", "modules_in_block_to_quantize"]
    try:
        scheme = recognise({**values, keys[key % len(keys)]: junk}, "config.json")
    except CheckpointError:
        return
    scheme.format_of(LAYER)


def stored(weights: WeightFormat) -> dict[str, TensorSpec]:
    """The tensors of a checkpoint with one packed layer and one that is not."""
    packed = weights.tensors(512, 640)
    norm = {"model.norm.weight": TensorSpec(torch.bfloat16, (64,))}
    return {**norm, **{f"{LAYER}.{role}": spec for role, spec in packed.items()}}


@pytest.mark.parametrize(
    "weights",
    [
        Fp8(),
        Fp8((1, 128)),
        Fp8((1, 0), scale="weight_scale"),
        Fp8((0, 0), scale="weight_scale"),
        Fp8((1, 32), scale_dtype=torch.uint8),
        Nvfp4(),
        Nvfp4("weight", "weight_scale_2"),
        BitsAndBytes4(),
        BitsAndBytes4("fp4", nested=False),
        BitsAndBytes8(),
    ],
)
def test_tensors_show_their_format_without_a_config(weights: WeightFormat) -> None:
    scheme = infer(stored(weights))
    assert scheme.format_of(LAYER) == weights
    assert scheme.format_of("model.norm") is None


def test_the_grid_of_modelopt_shows_its_blocks() -> None:
    grid = {f"{LAYER}.weight_scale": TensorSpec(torch.float32, (4, 1, 5, 1))}
    scheme = infer({**stored(Fp8(scale="weight_scale")), **grid})
    assert scheme.format_of(LAYER) == Fp8(scale="weight_scale")


@pytest.mark.parametrize("weights", [Gptq(), Awq(), PackedIntegers(4, 128), Mxfp4("weight")])
def test_tensors_that_do_not_show_their_format_are_refused(weights: WeightFormat) -> None:
    with pytest.raises(CheckpointError, match=f"{LAYER} is packed as .* no config says"):
        infer(stored(weights))


def test_fp8_weights_without_scales_are_refused() -> None:
    tensors = {f"{LAYER}.weight": TensorSpec(torch.float8_e4m3fn, (512, 640))}
    with pytest.raises(CheckpointError, match="is packed as weight, and no config says"):
        infer(tensors)
