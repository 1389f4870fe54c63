"""Quantised checkpoints: those of other tests, with their linear layers and experts packed.

Beside each there is one with the unpacked weights in float32, which transformers serves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.linear.formats import packers

Pack = Callable[[torch.Tensor], packers.Packed]
"""Packs a matrix: returns its tensors by their roles, and the float32 values that they mean."""

Tensors = dict[str, torch.Tensor]

KEPT = ("embed", "norm", "lm_head", "gate.weight", "router", "pooler", "shared.weight")
"""Parts of names of matrices that stay as they are."""


@dataclass(frozen=True)
class Format:
    """A way to quantise a checkpoint, as a library writes it.

    Attributes:
        config: What the checkpoint says of its quantisation.
        pack: How to pack a matrix.
        title: The format as users see it.
        file: Where the config is.
        of_gpt_oss: Only experts are packed, whose inputs come first in the model.
    """

    config: Mapping[str, Any]
    pack: Pack
    title: str
    file: str = "config.json"
    of_gpt_oss: bool = False


def as_it_is(name: str) -> str:
    """The name that a tensor keeps."""
    return name


def quantise(
    folder: Path,
    target: Path,
    form: Format,
    *,
    rename: Callable[[str], str] = as_it_is,
    kept: tuple[str, ...] = KEPT,
    shards: int = 1,
) -> tuple[Path, Path]:
    """Writes a quantised copy of a checkpoint, and one of the same values in float32.

    Args:
        folder: The checkpoint.
        target: The folder of both.
        form: How to quantise it.
        rename: Returns the name that a tensor has in the quantised copy.
        kept: Parts of names of matrices that stay as they are.
        shards: The number of files of the quantised copy.

    Returns:
        The folders of the quantised and of the unpacked copy.
    """
    torch.manual_seed(1)
    packed: Tensors = {}
    plain: Tensors = {}
    for name, weight in stored(folder).items():
        if _is_quantised(name, weight, form, kept):
            tensors, plain[name] = _packed(name, weight.float(), form)
            packed |= tensors
        else:
            packed[name], plain[name] = weight, weight.float()
    _write(folder, target / "plain", plain, 1)
    renamed = {rename(name): tensor for name, tensor in packed.items()}
    _state(_write(folder, target / "packed", renamed, shards), form)
    return target / "packed", target / "plain"


def stored(folder: Path) -> Tensors:
    """All tensors of a checkpoint."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _is_quantised(name: str, weight: torch.Tensor, form: Format, kept: tuple[str, ...]) -> bool:
    is_expert = ".experts." in name
    if name.endswith("bias") or any(part in name for part in kept):
        return False
    return (weight.dim() == 3 and is_expert) or (weight.dim() == 2 and not form.of_gpt_oss)


def _packed(name: str, weight: torch.Tensor, form: Format) -> packers.Packed:
    """The tensors of a matrix, or of a parameter with the matrices of all experts, and its values.

    Tensors of a parameter bear its name, those of a matrix that of its layer.
    """
    if weight.dim() == 2:
        tensors, values = form.pack(weight)
        layer = name.removesuffix(".weight")
        return {f"{layer}.{role}": tensor for role, tensor in tensors.items()}, values.contiguous()
    packs = [form.pack(matrix.T.contiguous() if form.of_gpt_oss else matrix) for matrix in weight]
    values = torch.stack([matrix.T if form.of_gpt_oss else matrix for _, matrix in packs])
    tensors = {
        f"{name}_{role}".replace("_weight", ""): torch.stack([parts[role] for parts, _ in packs])
        for role in packs[0][0]
    }
    return tensors, values.contiguous()


def _write(folder: Path, copy: Path, tensors: Tensors, shards: int) -> Path:
    """Writes these tensors beside the small files of another checkpoint."""
    weights = shutil.ignore_patterns("*.safetensors", "*.index.json")
    shutil.copytree(folder, copy, ignore=weights)
    if shards == 1:
        files = {"model.safetensors": sorted(tensors)}
    else:
        names = [f"model-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
        files = {file: sorted(tensors)[at::shards] for at, file in enumerate(names)}
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {}, "weight_map": weight_map}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, names in files.items():
        own = {name: tensors[name].contiguous() for name in names}
        save_file(own, copy / file, {"format": "pt"})
    return copy


def _state(copy: Path, form: Format) -> None:
    if form.file != "config.json":
        (copy / form.file).write_text(json.dumps(form.config))
        return
    file = copy / form.file
    config = json.loads(file.read_text()) | {"quantization_config": dict(form.config)}
    file.write_text(json.dumps(config))


def fp8_blocks(side: int) -> Format:
    """Block FP8, as DeepSeek publishes it (its ``inference/kernel.py``), with smaller blocks."""
    config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [side, side],
        "modules_to_not_convert": ["lm_head"],
    }
    pack = partial(packers.fp8, block=(side, side), role="weight_scale_inv")
    return Format(config, pack, f"fp8 (block {side}x{side})")
