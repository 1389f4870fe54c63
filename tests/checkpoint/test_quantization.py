"""Where a checkpoint may say that it is quantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from predictor.checkpoint.checkpoint import open_directory
from predictor.errors import CheckpointError
from tests.checkpoints import CONFIGS

STATED = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def opened(folder: Path, config: dict[str, Any], own: Any = None) -> Any:
    """The checkpoint of a config, with another file beside it."""
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"].to_dict() | config))
    if own is not None:
        (folder / "hf_quant_config.json").write_text(own)
    return open_directory(folder, needs_weights=False)


@pytest.mark.parametrize(
    ("config", "own", "file"),
    [
        ({"quantization_config": STATED}, None, "config.json"),
        ({"compression_config": STATED}, None, "config.json"),
        ({}, json.dumps(STATED), "hf_quant_config.json"),
        ({"quantization_config": STATED}, '{"quantization": {}}', "config.json"),
    ],
)
def test_each_place(tmp_path: Path, config: dict[str, Any], own: Any, file: str) -> None:
    checkpoint = opened(tmp_path, config, own)
    assert (dict(checkpoint.quantization.values), checkpoint.quantization.file.name) == (
        STATED,
        file,
    )
    assert not hasattr(checkpoint.config, "quantization_config")


def test_the_part_of_a_text_model(tmp_path: Path) -> None:
    text = CONFIGS["llama"].to_dict() | {"quantization_config": STATED}
    config = {"model_type": "llava", "text_config": text, "architectures": ["X"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_directory(tmp_path, task="text_generation", needs_weights=False)
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.values == STATED


@pytest.mark.parametrize("config", [{}, {"quantization_config": {}}, {"quantization_config": None}])
def test_a_config_that_says_nothing(tmp_path: Path, config: dict[str, Any]) -> None:
    assert opened(tmp_path, config).quantization is None


@pytest.mark.parametrize("own", ["{", "[1]", '"fp8"'])
def test_a_damaged_file_is_refused(tmp_path: Path, own: str) -> None:
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json"):
        opened(tmp_path, {}, own)
