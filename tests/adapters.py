"""LoRA adapters in the format of PEFT, written by its definition (``peft/tuners/lora``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

_PREFIX = "base_model.model."


def write_adapter(
    folder: Path, model: nn.Module, targets: tuple[str, ...], *, seed: int, **config: Any
) -> Path:
    """Writes an adapter of rank 4 for the linear layers of a model with these last names."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] not in targets:
            continue
        out, columns = module.weight.shape
        a, b = (
            torch.randn(4, columns, generator=generator),
            torch.randn(out, 4, generator=generator),
        )
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a * 0.2
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(targets)}
    whole["base_model_name_or_path"] = "org/base"
    (folder / "adapter_config.json").write_text(json.dumps(whole | config))
    return folder


def merged(model: nn.Module, folder: Path, scale: float) -> nn.Module:
    """Adds an adapter to the weights of a model, and returns the model."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name, a in tensors.items():
            if ".lora_A." in name:
                b = tensors[name.replace(".lora_A.", ".lora_B.")]
                layer = model.get_submodule(name.removeprefix(_PREFIX).partition(".lora_A.")[0])
                layer.weight += scale * b @ a
    return model
