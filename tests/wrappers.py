"""Tiny wrappers of language models, with the towers that text never uses.

Each is built by its own class and saved by it, as published checkpoints are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel

from tests.checkpoints import VOCABULARY, byte_tokenizer

_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **_IDS,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,  # more than the text model has
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_IMAGE = {"image_token_id": 260, "video_token_id": 261}
_QWEN_VISION = {"depth": 5, "hidden_size": 32, "num_heads": 2, "patch_size": 14}


def _text(model_type: str, **values: object) -> dict[str, Any]:
    return {**_TEXT, "model_type": model_type, **values}


def _vision(model_type: str, **values: object) -> dict[str, Any]:
    return {**_VISION, "model_type": model_type, **values}


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


_LLAVA = {"text_config": _text("llama"), "vision_config": _vision("clip_vision_model")}
_QWEN_TEXT = {**_TEXT, "rope_parameters": _rope(2, 3, 3)}
_QWEN3_TEXT = {**_QWEN_TEXT, "head_dim": 16}
_SIGLIP = _vision("siglip_vision_model")

WRAPPERS: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "llava_onevision": {"text_config": _text("qwen2"), "vision_config": _SIGLIP},
    "vipllava": _LLAVA | {"vision_feature_layers": [-2, -3]},
    "mistral3": {
        "text_config": _text("mistral", head_dim=16),
        "vision_config": _vision("pixtral", head_dim=16),
    },
    "gemma3": {
        "text_config": _text("gemma3_text", head_dim=16, sliding_window=8),
        "vision_config": _SIGLIP | {"vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "gemma4": {
        "text_config": _text(
            "gemma4_text",
            head_dim=16,
            global_head_dim=16,
            sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=16,
            num_kv_shared_layers=0,
        ),
        "vision_config": _vision("gemma4_vision", head_dim=16, num_key_value_heads=2),
        "audio_config": None,
        "image_token_id": 260,
    },
    "kosmos-2.5": {
        "text_config": {
            "vocab_size": VOCABULARY,
            "embed_dim": 64,
            "layers": 3,
            "ffn_dim": 128,
            "attention_heads": 4,
            "max_position_embeddings": 256,
            **_IDS,
        },
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 5,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "head_dim": 16,
        },
    },
    "paligemma": {
        "text_config": _text("gemma", head_dim=16),
        "vision_config": _SIGLIP | {"projection_dim": 64},
        "projection_dim": 64,
        "image_token_id": 260,
    },
    "internvl": {"text_config": _text("qwen2"), "vision_config": _vision("internvl_vision")},
    "qwen2_vl": {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VISION | {"embed_dim": 32, "hidden_size": 64},
        **_IMAGE,
    },
    "qwen2_5_vl": {
        "text_config": _QWEN_TEXT,
        "vision_config": _QWEN_VISION | {"intermediate_size": 64, "out_hidden_size": 64},
        **_IMAGE,
    },
    "qwen3_vl": {
        "text_config": _QWEN3_TEXT,
        "vision_config": _QWEN_VISION
        | {"intermediate_size": 64, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1, 2]},
        **_IMAGE,
    },
    "qwen3_5": {
        "text_config": _QWEN3_TEXT
        | {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "rope_parameters": _rope(2, 3, 3) | {"partial_rotary_factor": 1.0},
        },
        "vision_config": _QWEN_VISION | {"intermediate_size": 64, "out_hidden_size": 64},
        **_IMAGE,
    },
    "glm4v": {
        "text_config": _TEXT | {"rope_parameters": _rope(2, 3, 3) | {"partial_rotary_factor": 1.0}},
        "vision_config": _QWEN_VISION | {"out_hidden_size": 64, "intermediate_size": 64},
        **_IMAGE,
    },
    "idefics2": {
        "text_config": _text("mistral", head_dim=16),
        "vision_config": _VISION,
        "perceiver_config": {
            "hidden_size": 64,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
    },
    "idefics3": {"text_config": _text("llama"), "vision_config": _VISION, "scale_factor": 2},
    "aria": {
        "text_config": _text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        "vision_config": _vision("idefics3_vision"),
    },
    "llama4": {
        "text_config": _TEXT
        | {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 128,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 1, 0],
        },
        "vision_config": _VISION
        | {
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "pixel_shuffle_ratio": 0.5,
        },
    },
    "mllama": {
        "text_config": _TEXT
        | {
            "num_hidden_layers": 4,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "vision_config": _VISION
        | {
            "num_global_layers": 1,
            "vision_output_dim": 64,
            "attention_heads": 2,
            "intermediate_layers_indices": [0],
        },
    },
    "qwen2_audio": {
        "text_config": _text("qwen2"),
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 5,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
        },
    },
}
"""The values of a config by its model type."""


def wrapper_config(model_type: str) -> PreTrainedConfig:
    """The config of a tiny wrapper."""
    return AutoConfig.for_model(model_type, **WRAPPERS[model_type], **_IDS)


def make_wrapper(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """Writes a wrapper and its tokenizer; returns the wrapper."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForMultimodalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.eval().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model
