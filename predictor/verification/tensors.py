"""The tensors of a checkpoint's files: names, dtypes and shapes, and content on demand.

Of safetensors files the headers are read. Of ``.bin`` files the pickle is, in torch's restricted
way, while the numbers stay on disk. PyTorch before 1.6 wrote both into one stream, of which nothing
is known before all of it is read.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.remote_files import RemoteWeights
from predictor.errors import CheckpointError, reason_of
from predictor.linear.formats.format import TensorSpec
from predictor.quantization.stored import StoredSpecs, read_specs


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors of a checkpoint.

    Attributes:
        specs: Their dtypes and shapes, by name.
        files: The safetensors files.
        mapped: Tensors of ``.bin`` files, by name, which are not read yet.
        remote: Fetches tensors that are not on local disk yet; None if all are.
    """

    specs: StoredSpecs
    files: tuple[Path, ...] = ()
    mapped: Mapping[str, torch.Tensor] = field(default_factory=dict)
    remote: RemoteWeights | None = None

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, whose numbers are read where they are used."""
        if name in self.mapped:
            return self.mapped[name]
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                if name in set(opened.keys()):
                    if self.remote is not None:
                        self.remote.preview(file, name)
                    tensor: torch.Tensor = opened.get_tensor(name)
                    return tensor
        raise KeyError(name)


def open_tensors(checkpoint: Checkpoint) -> StoredTensors | None:
    """Return the tensors of a checkpoint; None if nothing is known of them before they are read.

    Raises:
        CheckpointError: A file is damaged, or holds something else.
    """
    stored = checkpoint.stored
    if stored is None:
        return None
    if checkpoint.kind == "safetensors":
        specs = read_specs(stored, is_quantised=checkpoint.quantization is not None)
        return StoredTensors(specs, stored.files, remote=checkpoint.remote)
    if not all(map(zipfile.is_zipfile, stored.files)):
        return None
    mapped: dict[str, torch.Tensor] = {}
    for file in stored.files:
        mapped |= _map_pickle(file)
    specs = {name: TensorSpec(each.dtype, tuple(each.shape)) for name, each in mapped.items()}
    return StoredTensors(specs, mapped=mapped)


def _map_pickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{file} is damaged or does more than hold weights.") from None
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise CheckpointError(f"{file} is damaged: {reason_of(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds no tensors by name.")
    return {name: each for name, each in content.items() if isinstance(each, torch.Tensor)}
