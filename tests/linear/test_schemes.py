from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AwqConfig,
    BitsAndBytesConfig,
    FbgemmFp8Config,
    FineGrainedFP8Config,
    GPTQConfig,
    Mxfp4Config,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from predictor.errors import CheckpointError
from predictor.linear.formats.awq import Awq
from predictor.linear.formats.bitsandbytes import BitsAndBytes4, BitsAndBytes8
from predictor.linear.formats.format import WeightFormat
from predictor.linear.formats.fp8 import Fp8
from predictor.linear.formats.gptq import Gptq
from predictor.linear.formats.integers import Integers, PackedIntegers
from predictor.linear.formats.mxfp4 import Mxfp4
from predictor.linear.formats.nvfp4 import Nvfp4
from predictor.linear.schemes import recognise
from tests.linear.published_configs import (
    ATTENTION,
    DOUBLY,
    EXPERT,
    FP8_OF_QUARK,
    FP8_WEIGHTS,
    HEAD,
    INT8_WEIGHTS,
    LAYER,
    MX_OF_QUARK,
    PUBLISHED,
    W4A16,
    compressed,
)


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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FineGrainedFP8Config(), Fp8()),
        (Mxfp4Config(), Mxfp4()),
        (FbgemmFp8Config(), Fp8((1, 0), scale="weight_scale")),
        (GPTQConfig(bits=4, desc_act=False, sym=True), Gptq()),
        (AwqConfig(bits=4), Awq()),
        (
            BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            BitsAndBytes4("nf4", nested=False),
        ),
        (BitsAndBytesConfig(load_in_8bit=True), BitsAndBytes8()),
    ],
)
def test_configs_are_recognised_as_transformers_writes_them(
    config: QuantizationConfigMixin, expected: WeightFormat
) -> None:
    values = json.loads(config.to_json_string(use_diff=False))
    assert recognise(values, "config.json").format_of(LAYER) == expected
