"""An architecture that cannot run is refused at plan; one that needs values of tensors is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, FunnelConfig, PreTrainedConfig

from predictor import cli
from predictor.engine.trial import check_one_token
from predictor.errors import ModelUnusable
from predictor.profiling.footprint import build_on_meta
from tests.checkpoints import ALL_CONFIGS
from tests.encoding.checkpoints import CONFIGS as ENCODERS
from tests.encoding.checkpoints import ENCODER_DECODERS, encoder_decoder_config


def config_of(kind: str, **values: Any) -> PreTrainedConfig:
    shape = {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoConfig.for_model(kind, **{**shape, "intermediate_size": 96, **values})


@pytest.mark.parametrize("architecture", ALL_CONFIGS)
def test_architectures_that_run_pass(architecture: str) -> None:
    check_one_token(build_on_meta(ALL_CONFIGS[architecture], "float32"))


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_encoder_decoders_pass(architecture: str) -> None:
    config = encoder_decoder_config(architecture)
    check_one_token(build_on_meta(config, "float32", "text2text_generation"))


POOLING = {
    "canine": config_of("canine"),
    "funnel": FunnelConfig(
        vocab_size=264, block_sizes=[1, 1], d_model=64, n_head=4, d_head=16, d_inner=96
    ),
}


@pytest.mark.parametrize("kind", [*ENCODERS, *POOLING])
def test_encoders_pass_even_those_that_pool_neighbours(kind: str) -> None:
    config = {**ENCODERS, **POOLING}[kind]
    check_one_token(build_on_meta(config, "float32", "sequence_classification"))


BROKEN = config_of("gptj", n_embd=64, n_head=4, n_layer=2, rotary_dim=64)
"""Its heads have 16 numbers, of which 64 would be rotated."""


@pytest.mark.parametrize("task", ["text_generation", "text_embedding"])
def test_a_config_that_no_token_can_be_computed_with_is_refused_at_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    values = BROKEN.to_dict()
    name = type(build_on_meta(BROKEN, "float32", task)).__name__
    (tmp_path / "config.json").write_text(json.dumps({**values, "architectures": [name]}))

    command = ["plan", str(tmp_path / "config.json"), "--memory=4GiB", f"--task={task}"]
    assert cli.main(command) == 78
    assert f"{name} cannot compute a token" in capsys.readouterr().err


def _item(_: Any) -> None:
    torch.zeros(1, device="meta").item()


def _branch(_: Any) -> None:
    bool(torch.zeros(1, device="meta"))


def _list(_: Any) -> None:
    torch.zeros(1, device="meta").tolist()


def _indices(_: Any) -> None:
    torch.zeros(3, device="meta").nonzero()


def _constant(_: Any) -> None:
    torch.zeros(3, device="meta") + torch.zeros(3)


@pytest.mark.parametrize("code", [_item, _branch, _list, _indices, _constant])
def test_code_that_needs_values_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, code: Callable[[Any], None]
) -> None:
    model: Any = build_on_meta(ALL_CONFIGS["llama"], "float32")
    model.model.norm.register_forward_pre_hook(lambda *_: code(model))

    check_one_token(model)


def test_an_error_of_the_code_is_refused() -> None:
    model: Any = build_on_meta(ALL_CONFIGS["llama"], "float32")

    def fail(*_: Any) -> None:
        raise AttributeError("no such cache")

    model.model.norm.register_forward_pre_hook(fail)

    with pytest.raises(ModelUnusable, match=r"LlamaForCausalLM cannot compute .*: no such cache"):
        check_one_token(model)
