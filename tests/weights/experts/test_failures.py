"""Experts that cannot be read, that are damaged, and forward passes that fail among them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from predictor.errors import EngineBroken, WeightsUnreadable
from predictor.private.experts import uses_experts_interface
from tests.conftest import Checkpoints
from tests.serving import Up
from tests.weights.experts.serving import Way, served

IDS = torch.tensor([[7, 3, 11, 2, 19, 5]])
WAYS = [Way(1, "checkpoint"), Way(3, "store")]


@torch.inference_mode()
def logits(up: Up) -> torch.Tensor:
    result: torch.Tensor = up.model(input_ids=IDS, use_cache=False).logits
    return result


@pytest.fixture
def copied(mixtures: Checkpoints, tmp_path: Path) -> Path:
    """A checkpoint that the test may damage; experts are stored as they are served."""
    return Path(shutil.copytree(mixtures("mixtral", fused=True), tmp_path / "model"))


def files_of_experts(folder: Path, offload: Path, way: Way) -> list[Path]:
    if way.source == "store":
        return list(offload.glob("*.store"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return sorted({folder / file for key, file in index.items() if "experts" in key})


class CutShort:
    """Files that lose all but their first bytes, and get them back."""

    def __init__(self, files: list[Path]) -> None:
        self._whole = {file: (file.read_bytes(), file.stat()) for file in files}

    def cut(self) -> None:
        for file in self._whole:
            with file.open("r+b") as stream:
                stream.truncate(8192)

    def restore(self) -> None:
        for file, (content, stat) in self._whole.items():
            with file.open("r+b") as stream:
                stream.write(content)
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_pass_whose_experts_cannot_be_read_fails_and_the_next_one_is_right(
    copied: Path, tmp_path: Path, way: Way
) -> None:
    offload = tmp_path / "offload"
    with served(copied, way, offload) as up:
        wanted = logits(up)
        files = CutShort(files_of_experts(copied, offload, way))
        files.cut()
        for _ in range(2):
            with pytest.raises(WeightsUnreadable, match="cannot be read from"):
                logits(up)
        files.restore()
        assert torch.equal(logits(up), wanted)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_request_whose_experts_cannot_be_read_ends_with_one_sentence(
    copied: Path, tmp_path: Path, way: Way
) -> None:
    offload = tmp_path / "offload"
    with served(copied, way, offload) as up:
        CutShort(files_of_experts(copied, offload, way)).cut()
        with pytest.raises(WeightsUnreadable, match=r"layers\.\d.* cannot be read from"):
            up.tokens([5, 6], max_new_tokens=8)
        with pytest.raises((WeightsUnreadable, EngineBroken)):
            up.tokens([5, 6], max_new_tokens=8)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_pass_that_fails_among_experts_leaves_the_next_one_right(
    copied: Path, tmp_path: Path, way: Way
) -> None:
    with served(copied, way, tmp_path / "offload") as up:
        wanted = logits(up)
        for module in parts_to_fail(up):
            handle = module.register_forward_pre_hook(fail)
            with pytest.raises(ValueError, match="among experts"):
                logits(up)
            handle.remove()
            assert torch.equal(logits(up), wanted)


def parts_to_fail(up: Up) -> list[torch.nn.Module]:
    """What experts call once they have their weights, experts themselves, and a part behind."""
    experts = [module for module in up.model.modules() if uses_experts_interface(module)]
    return [experts[1].act_fn, experts[2], up.model.lm_head]


def fail(*_: Any) -> None:
    raise ValueError("among experts")


def test_a_store_with_damaged_experts_is_written_anew_where_it_is_checked(
    copied: Path, tmp_path: Path
) -> None:
    way, offload = Way(2, "store"), tmp_path / "offload"
    with served(copied, way, offload) as up:
        wanted = logits(up)
    (store,) = offload.glob("*.store")
    damage(store, experts_of_last_block(copied))
    with served(copied, way, offload) as up:
        assert not torch.equal(logits(up), wanted)
    with served(copied, way, offload, verify_store=True) as up:
        assert torch.equal(logits(up), wanted)


def experts_of_last_block(folder: Path) -> list[bytes]:
    """The bytes of each expert in one of its two tensors."""
    name = "model.layers.3.mlp.experts.down_proj"
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return [expert.numpy().tobytes() for expert in load_file(folder / index[name])[name]]


def damage(file: Path, parts: list[bytes]) -> None:
    """Change one value of each of these parts of a file."""
    content = file.read_bytes()
    with file.open("r+b") as stream:
        for part in parts:
            stream.seek(content.index(part))
            stream.write(b"\x00\x00\x80\x40")  # 4.0
