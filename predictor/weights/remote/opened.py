"""A safetensors file as transformers reads it, whose tensors are fetched when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from predictor.checkpoint.remote_files import RemoteWeights
from predictor.private.stored_names import CheckpointNames


class Use(Enum):
    """What `from_pretrained` does with a stored tensor."""

    NONE = 0
    """Its header alone is read."""

    STAYS = 1
    """It is copied to the memory where it stays."""

    CONVERTED = 2
    """It is read, and what is made of it is written to the offload volume."""


def uses_of_tensors(
    model: PreTrainedModel, device_map: Mapping[str, int | str]
) -> Callable[[str], Use]:
    """Return what becomes of a stored tensor, given by name.

    A tensor on the meta device is not used, and on disk only if it is converted. Whatever is of no
    known parameter counts as used.

    Args:
        model: The model on the meta device.
        device_map: The device of each part.
    """
    names = CheckpointNames(model)

    def use_of(stored: str) -> Use:
        parameter, pattern = names.parameter(stored)
        device = _device(parameter or stored, device_map)
        if device == "disk":
            is_read_in_place = parameter is not None and pattern is None
            return Use.NONE if is_read_in_place else Use.CONVERTED
        return Use.NONE if device == "meta" else Use.STAYS

    return use_of


def _device(name: str, device_map: Mapping[str, int | str]) -> int | str | None:
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name)


class OpenedShard:
    """Stands in for an open file of safetensors."""

    def __init__(
        self,
        file: str,
        remote: RemoteWeights,
        use_of: Callable[[str], Use],
        **options: Any,
    ) -> None:
        """Open the local file.

        Args:
            file: The local file.
            remote: Fetches its tensors.
            use_of: What becomes of a tensor, by name.
            options: Those of safetensors.
        """
        self._path = Path(file)
        self._file: Any = safe_open(file, **options)
        self._remote, self._use_of = remote, use_of

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._file.keys())

    def get_slice(self, name: str) -> Any:
        """Return a tensor that is fetched and read when it is indexed."""
        whole = self._file.get_slice(name)
        return whole if self._use_of(name) is Use.NONE else _Slice(whole, lambda: self._read(name))

    def __enter__(self) -> OpenedShard:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def _read(self, name: str) -> torch.Tensor:
        """Return a copy in anonymous memory, so that the file may be released."""
        self._remote.require(self._path, [name])
        tensor: torch.Tensor = self._file.get_tensor(name).clone()
        if self._use_of(name) is Use.STAYS:
            self._remote.copied(self._path, [name])
        return tensor


class _Slice:
    """A slice of safetensors that is read from elsewhere."""

    def __init__(self, whole: Any, read: Callable[[], torch.Tensor]) -> None:
        self._whole, self._read = whole, read

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._read()[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)
