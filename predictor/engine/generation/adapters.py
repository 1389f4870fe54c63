"""LoRA adapters beside the weights of one model: rows of a forward pass use different ones.

Adapters are small and stay in memory, so a forward pass streams the weights of the model once for
the rows of all adapters. A hook behind each adapted layer adds what the adapters of its rows give.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from predictor.checkpoint.adapters import AdaptedLayer, Adapter
from predictor.errors import CheckpointError, LoadFailed, reason_of
from predictor.linear.install import is_weight_used_by


@dataclass(frozen=True, slots=True)
class _Matrices:
    """A and B, transposed and scaled: outputs get ``x a b`` added."""

    a: torch.Tensor
    b: torch.Tensor

    def on(self, device: torch.device) -> _Matrices:
        """Return the same matrices on a device."""
        return _Matrices(self.a.to(device), self.b.to(device))

    def add(self, x: torch.Tensor, outputs: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Add to the outputs of some rows, or of all."""
        mine = x if rows is None else x[rows]
        added = (mine.to(self.a.dtype) @ self.a @ self.b).to(outputs.dtype)
        if rows is None:
            outputs += added
        else:
            outputs.index_add_(0, rows, added)


class LoadedAdapters:
    """The adapters of a model, on the device that executes it.

    Adapters come and go while the model computes, in another thread. A forward pass uses an adapter
    only after `load` has returned, and not after `unload` is called.

    Attributes:
        model: The model.
        dtype: The dtype in which they are kept.
        names: The names of the adapters.
    """

    def __init__(
        self, model: nn.Module, adapters: Sequence[Adapter], device: torch.device | str | int
    ) -> None:
        """Read the weights of adapters, and attach them to a model.

        Args:
            model: The model.
            adapters: Adapters that `check_adapters` has accepted.
            device: The device that executes the model.
        """
        self.model = model
        self._device = device
        self.dtype: torch.dtype = getattr(model, "dtype", torch.float32)
        self._rows: Mapping[str, torch.Tensor | None] = {}
        self._shape = 0, 0
        self._by_layer: dict[str, dict[str, _Matrices]] = {}
        self._lock = threading.Lock()  # of those who load and unload; passes only look up
        self.names: frozenset[str] = frozenset()
        for adapter in adapters:
            self.load(adapter)

    def load(self, adapter: Adapter) -> None:
        """Read the weights of an adapter that `check_adapters` has accepted, and attach it.

        Raises:
            LoadFailed: They cannot be read. The adapters are as before.
        """
        layers = list(_read_all(adapter, self._device, self.dtype))
        with self._lock:
            for name, matrices in layers:
                if name not in self._by_layer:
                    self._by_layer[name] = {}
                    hook = partial(self._add, name, self._by_layer[name])
                    self.model.get_submodule(name).register_forward_hook(hook)
                self._by_layer[name][adapter.name] = matrices
            self.names |= {adapter.name}

    def unload(self, name: str) -> None:
        """Forget an adapter, which no sequence uses any more."""
        with self._lock:
            self.names -= {name}
            for matrices in self._by_layer.values():
                matrices.pop(name, None)

    @classmethod
    def none(cls) -> LoadedAdapters:
        """Return no adapters."""
        return cls(nn.Module(), (), "cpu")

    @contextlib.contextmanager
    def used_by(self, rows: Sequence[str | None], columns: int) -> Iterator[None]:
        """Add to the rows of a forward pass what their adapters give.

        Args:
            rows: The adapter of each row; None is the model alone.
            columns: The tokens that it computes of each row, padding included.
        """
        indices: dict[str, list[int]] = {}
        for index, name in enumerate(rows):
            if name is not None:
                indices.setdefault(name, []).append(index)
        self._shape = len(rows), columns
        self._rows = {
            name: None if len(each) == len(rows) else torch.tensor(each)
            for name, each in indices.items()
        }
        try:
            yield
        finally:
            self._rows = {}

    def _add(
        self,
        name: str,
        matrices: dict[str, _Matrices],
        _: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Add to the outputs of a layer; the signature is that of a forward hook."""
        for adapter, rows in self._rows.items():
            mine = matrices.get(adapter)
            if mine is None:
                continue
            if mine.a.device != output.device:  # one of several accelerators computes the layer
                mine = matrices[adapter] = mine.on(output.device)
            chosen = None if rows is None else rows.to(output.device)
            mine.add(self._by_row(name, inputs[0]), self._by_row(name, output), chosen)
        return output

    def _by_row(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return values with a dimension of rows first; some code joins rows and their tokens."""
        rows, columns = self._shape
        if values.dim() == 2 and len(values) == rows * columns:
            return values.view(rows, columns, values.shape[-1])
        if len(values) != rows:
            raise RuntimeError(f"{name} does not compute rows in their order")
        return values


def check_adapters(model: nn.Module, adapters: Sequence[Adapter]) -> None:
    """Check that a model has the layers that adapters change.

    Args:
        model: The model, on any device, meta included.
        adapters: The adapters.

    Raises:
        CheckpointError: It lacks one, or has it in another shape.
    """
    modules = dict(model.named_modules())
    for adapter in adapters:
        for name, layer in adapter.layers.items():
            owner, _, last = name.rpartition(".")
            reason = _mismatch(modules.get(name), layer)
            if reason is None and is_weight_used_by(modules[owner], last):
                reason = "is not called by the model's code, which takes its weight"
            if reason is not None:
                base = f" (it was trained on {adapter.base})" if adapter.base else ""
                raise CheckpointError(
                    f"The adapter {adapter.name!r} does not suit this model{base}: {name} {reason}."
                )


def count_adapter_bytes(adapters: Sequence[Adapter], itemsize: int) -> int:
    """Return the bytes that adapters take in memory."""
    return itemsize * sum(
        layer.elements for adapter in adapters for layer in adapter.layers.values()
    )


def _mismatch(module: Any, layer: AdaptedLayer) -> str | None:
    if module is None:
        return "is not in it"
    shape = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if shape == (None, None):
        return "is no linear layer"
    if shape != (layer.out_features, layer.in_features):
        return f"is {shape[0]}x{shape[1]}, and not {layer.out_features}x{layer.in_features}"
    return None


def _read_all(
    adapter: Adapter, device: torch.device | str | int, dtype: torch.dtype
) -> Iterator[tuple[str, _Matrices]]:
    """Yield the matrices of an adapter by the names of the layers.

    Raises:
        LoadFailed: They cannot be read.
    """
    try:
        with safe_open(adapter.file, framework="pt") as file:
            for name, layer in adapter.layers.items():
                a, b = file.get_tensor(layer.a), file.get_tensor(layer.b)
                scaled = b.to(torch.float32) * layer.scale
                yield name, _Matrices(a.t().to(device, dtype), scaled.t().to(device, dtype))
    except (OSError, SafetensorError, torch.OutOfMemoryError) as error:
        reason = reason_of(error)
        raise LoadFailed(f"The adapter {adapter.name!r} cannot be read: {reason}") from error
