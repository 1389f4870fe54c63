"""Wrappers of language models serve their text: without the towers, with the wrapper's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from predictor.errors import ConfigurationError
from predictor.profiling.footprint import build_on_meta
from tests.checkpoints import make_checkpoint
from tests.serving import bring_up
from tests.wrappers import WRAPPERS, make_wrapper, wrapper_config

_PROMPT = list(range(5, 16))

_ALWAYS = {"llava", "gemma3", "qwen2_vl", "llama4", "idefics3", "mllama", "qwen2_audio"} | {
    *("gemma4", "kosmos-2.5"),  # which read weights of their text model's embeddings themselves
}
"""One of each kind; the others run with ``--full-grid`` alone."""

_OF_IMAGES = ("vision", "visual", "audio", "projector", "cross_attn")
"""What names the weights that text does not use; Mllama has blocks among those of its text."""

_CASES = [
    pytest.param(name, marks=() if name in _ALWAYS else pytest.mark.full_grid) for name in WRAPPERS
]


def generated(model: Any, new: int = 6) -> list[int]:
    """The tokens that transformers' own loop gives."""
    ids = torch.tensor([_PROMPT])
    tokens = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
    )
    return tokens[0, len(_PROMPT) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("model_type", _CASES)
def test_the_text_of_a_wrapper_has_its_tokens_in_memory_and_on_disk(
    tmp_path: Path, model_type: str
) -> None:
    wrapper = make_wrapper(tmp_path / "model", wrapper_config(model_type))
    expected = generated(wrapper)
    for device_map in ("auto", "disk"):
        up = bring_up(
            tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
        )
        assert up.tokens(_PROMPT, max_new_tokens=6) == expected
        names = " ".join(name for name, _ in up.model.named_parameters())
        assert not any(part in names for part in _OF_IMAGES)
        assert "served for its text, without " in " ".join(up.prepared.placement.notes)
        units = up.prepared.footprint.units
        assert up.prepared.footprint.by_block
        assert sum(unit.block is not None for unit in units) == 3 + (model_type == "mllama")
        up.weights.release()


def test_the_language_model_within_serves_a_wrapper_that_needs_an_image(tmp_path: Path) -> None:
    text = {"model_type": "opt", "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3}
    sizes = {"num_attention_heads": 4, "vocab_size": 264, "word_embed_proj_dim": 64}
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "blip-2",
        text_config=text | sizes | {"max_position_embeddings": 256},
        vision_config=tower | {"image_size": 28, "patch_size": 14, "intermediate_size": 64},
        qformer_config=tower | {"intermediate_size": 64, "encoder_hidden_size": 32},
    )
    wrapper = make_wrapper(tmp_path / "model", config)
    up = bring_up(tmp_path / "model", device_map="disk", offload_folder=str(tmp_path / "offload"))
    assert up.prepared.footprint.architecture == "OPTForCausalLM"
    assert up.sources == {"checkpoint"}
    assert up.tokens(_PROMPT, max_new_tokens=6) == generated(wrapper.language_model)
    up.weights.release()


def test_a_wrapper_without_text_is_refused_with_the_reason() -> None:
    config = AutoConfig.for_model(
        "pix2struct", architectures=["Pix2StructForConditionalGeneration"]
    )
    with pytest.raises(ConfigurationError, match=r"does not run on text alone.*no language model"):
        build_on_meta(config, "float32", "text2text_generation")


def test_the_package_of_a_tower_is_not_needed() -> None:
    text = {"num_hidden_layers": 2, "intermediate_size": 128, "num_kv_shared_layers": 0}
    config = AutoConfig.for_model("gemma3n", text_config=text)
    model = build_on_meta(config, "bfloat16")  # timm is not installed
    assert not any("tower" in name for name, _ in model.named_parameters())


_DBRX = {
    "vocab_size": 264,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 3,
    "max_seq_len": 256,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    "ffn_config": {
        "ffn_hidden_size": 48,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "hidden_size": 64,
    },
}
_JETMOE = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "kv_channels": 16,
    "num_local_experts": 4,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize(
    ("model_type", "values", "is_measured"),
    [("dbrx", _DBRX, True), ("jetmoe", _JETMOE, False)],
)
def test_blocks_that_need_the_values_of_tensors_are_streamed(
    tmp_path: Path, model_type: str, values: dict[str, Any], is_measured: bool
) -> None:
    folder = tmp_path / "model"
    make_checkpoint(folder, model_type, config=AutoConfig.for_model(model_type, **values))
    expected = generated(AutoModelForCausalLM.from_pretrained(folder).eval())
    for device_map in ("auto", "disk"):
        up = bring_up(folder, device_map=device_map, offload_folder=str(tmp_path / "offload"))
        assert up.prepared.footprint.probed == is_measured
        assert bool(up.sources) == (device_map == "disk")
        assert up.tokens(_PROMPT, max_new_tokens=6) == expected
        up.weights.release()
