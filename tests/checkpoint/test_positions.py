"""The default and the longest length of a sequence, by the config."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3TextConfig, LlamaConfig, Phi3Config, PreTrainedConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from predictor.checkpoint.positions import (
    context_length,
    equal_positions,
    max_positions,
    with_equal_angles,
)
from tests.checkpoints import CONFIGS


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (LlamaConfig(max_position_embeddings=131072), 8192),
        (CONFIGS["gpt2"], 256),
        (CONFIGS["bloom"], 2048),
    ],
)
def test_the_default_context_is_the_models_own_up_to_8192(
    config: PreTrainedConfig, tokens: int
) -> None:
    assert context_length(config) == tokens


def test_the_position_limit_is_the_configs() -> None:
    assert max_positions(CONFIGS["gpt2"]) == 256
    assert max_positions(CONFIGS["bloom"]) is None  # ALiBi knows no positions


FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LONGROPE = Phi3Config(
    hidden_size=32,
    num_attention_heads=2,
    pad_token_id=0,
    max_position_embeddings=4096,
    original_max_position_embeddings=128,
    rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0, **FACTORS},
)
DYNAMIC = LlamaConfig(
    hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=128,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
)


@pytest.mark.parametrize(("config", "longest"), [(LONGROPE, 4096), (DYNAMIC, 512)])
def test_the_default_context_is_that_before_the_angles_change(
    config: PreTrainedConfig, longest: int
) -> None:
    assert context_length(config) == equal_positions(config) == 128
    assert max_positions(config) == longest


def angles(rotary: Any, positions: range) -> torch.Tensor:
    cosine, sine = rotary(torch.zeros(1), torch.arange(positions.start, positions.stop)[None])
    return torch.cat([cosine, sine], dim=-1)[0]


@pytest.mark.parametrize(
    ("config", "rotary"), [(LONGROPE, Phi3RotaryEmbedding), (DYNAMIC, LlamaRotaryEmbedding)]
)
def test_beyond_it_all_sequences_get_the_angles_of_the_longest(
    config: PreTrainedConfig, rotary: Any
) -> None:
    equal = rotary(with_equal_angles(config, 300))
    expected = angles(rotary(config), range(300))
    torch.testing.assert_close(angles(equal, range(300)), expected)
    torch.testing.assert_close(angles(equal, range(4, 9)), expected[4:9])
    assert not torch.allclose(angles(rotary(config), range(4, 9)), expected[4:9])


def test_two_dynamic_ropes_each_get_the_angles_of_the_longest() -> None:
    ropes = {
        "full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
        "sliding_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    }
    config = Gemma3TextConfig(
        hidden_size=32,
        head_dim=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=128,
        rope_parameters=ropes,
    )
    equal = Gemma3RotaryEmbedding(with_equal_angles(config, 300))
    given, positions = torch.zeros(1), torch.arange(300)[None]
    for layers in ropes:
        expected = Gemma3RotaryEmbedding(config)(given, positions, layers)
        torch.testing.assert_close(equal(given, positions, layers), expected)


@pytest.mark.parametrize("config", [LONGROPE, DYNAMIC])
def test_up_to_it_nothing_changes(config: PreTrainedConfig) -> None:
    assert with_equal_angles(config, 128).to_dict() == config.to_dict()


def test_code_that_comes_with_a_model_is_not_known_to_have_equal_angles() -> None:
    own = type("OwnConfig", (LlamaConfig,), {"__module__": "transformers_modules.own"})
    assert max_positions(own(**DYNAMIC.to_dict())) == 128


def test_dynamic_rope_with_a_fixed_base_never_changes() -> None:
    fixed = {**DYNAMIC.rope_parameters, "alpha": 1000.0, "factor": 1.0}
    assert equal_positions(LlamaConfig(max_position_embeddings=128, rope_parameters=fixed)) is None


SLIDING = {"rope_type": "default", "rope_theta": 10000.0}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": SLIDING,
}
BOTH_EXTENDED = {**GEMMA3, "sliding_attention": {**SLIDING, "rope_type": "linear", "factor": 4.0}}


@pytest.mark.parametrize(
    ("model_type", "values", "longest"),
    [
        # As the READMEs of Qwen2.5 and Qwen3 say it, in both spellings
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 131072),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 65536),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 131072),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": 2048},
            8192,
        ),
        # Configs that include the extension: DeepSeek-V3, gpt-oss, Llama-3.1
        (
            "deepseek_v3",
            {
                "max_position_embeddings": 163840,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 40,
                    "original_max_position_embeddings": 4096,
                },
            },
            163840,
        ),
        ("gpt_oss", {"max_position_embeddings": 131072}, 131072),
        (
            "llama",
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 131072),
        # By type of layer: as much as all of them
        ("gemma3_text", {"rope_parameters": GEMMA3}, 32768),
        ("gemma3_text", {"rope_parameters": BOTH_EXTENDED}, 131072),
        ("llama", {}, 32768),
    ],
)
def test_the_rope_of_a_config_extends_its_positions(
    model_type: str, values: dict[str, Any], longest: int
) -> None:
    config = AutoConfig.for_model(model_type, **{"max_position_embeddings": 32768} | values)

    assert max_positions(config) == longest
    assert context_length(config) == min(config.max_position_embeddings, 8192)


def test_the_rope_of_a_wrappers_text_model_counts() -> None:
    text = {
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    }
    config = AutoConfig.for_model("llava", text_config={"model_type": "llama", **text})

    assert max_positions(config) == 131072


def test_a_length_below_zero_is_none() -> None:
    assert max_positions(AutoConfig.for_model("xlnet")) is None
