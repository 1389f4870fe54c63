"""Quantised checkpoints: those of other tests, with their linear layers and experts packed.

Beside each there is one with the unpacked weights in float32, which transformers serves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Pack = Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""Packs a matrix: returns its tensors by their roles, and the float32 values that they mean."""

KEPT = ("embed", "norm", "lm_head", "gate.weight", "router")
"""Parts of names of matrices that stay as they are."""


@dataclass(frozen=True)
class Format:
    """A way to quantise a checkpoint, as a library writes it."""

    config: Mapping[str, Any]
    pack: Pack
    title: str


def quantise(folder: Path, target: Path, form: Format) -> tuple[Path, Path]:
    """Writes a quantised copy of a checkpoint, and one of the same values in float32.

    Args:
        folder: The checkpoint.
        target: The folder of both.
        form: How to quantise it.

    Returns:
        The folders of the quantised and of the unpacked copy.
    """
    packed, plain = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, weight in load_file(file).items():
            if weight.dim() != 2 or any(part in name for part in KEPT):
                packed[name] = weight
                plain[name] = weight.float()
                continue
            tensors, values = form.pack(weight.float())
            plain[name] = values.contiguous()
            layer = name.removesuffix(".weight")
            packed |= {f"{layer}.{role}": t.contiguous() for role, t in tensors.items()}
    copies = target / "packed", target / "plain"
    for copy, tensors, config in zip(
        copies, (packed, plain), ({"quantization_config": dict(form.config)}, {}), strict=True
    ):
        _write(folder, copy, tensors, config)
    return copies


def _write(
    folder: Path, copy: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]
) -> None:
    weights = shutil.ignore_patterns("*.safetensors", "*.index.json")
    shutil.copytree(folder, copy, ignore=weights)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def fp8_blocks(side: int) -> Format:
    """Block FP8, as DeepSeek publishes it (its ``inference/kernel.py``), with smaller blocks."""

    def pack(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows, columns = weight.shape
        scale = torch.zeros(-(-rows // side), -(-columns // side))
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                block = weight[i * side : (i + 1) * side, j * side : (j + 1) * side]
                scale[i, j] = block.abs().max() / 448
        each = scale.repeat_interleave(side, 0).repeat_interleave(side, 1)[:rows, :columns]
        eight = (weight / each).to(torch.float8_e4m3fn)
        return {"weight": eight, "weight_scale_inv": scale}, eight.float() * each

    config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [side, side],
        "modules_to_not_convert": ["lm_head"],
    }
    return Format(config, pack, f"fp8 (block {side}x{side})")
