"""Where each expert is on disk, and how it lies in a slot.

A slot holds the tensors of one expert one behind the other. Their bytes come from one range of a
file, or from several: a checkpoint as it is published has a tensor for each projection of each
expert, of which transformers makes one with all experts. A range may be stored in another dtype
than it is served in, and is cast as it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from predictor.mixture.parameters import expert_tensors
from predictor.placement.buffers import slot_offsets
from predictor.private.stored_names import StoredParameter
from predictor.weights.extents import (
    BlockExtent,
    FileIdentity,
    StoredTensor,
    TensorView,
    identify_file,
    stored_tensors,
)


@dataclass(frozen=True, slots=True)
class FileRange:
    """Consecutive bytes of a file, and their place in a slot.

    Attributes:
        file: The file.
        begin: Offset of the first byte in the file.
        length: Number of bytes in the file.
        at: Offset of the first byte in the slot.
        stored: The dtype of the bytes in the file.
        served: The dtype of the bytes in the slot.
        file_identity: The identity of the file when this layout was read.
    """

    file: Path
    begin: int
    length: int
    at: int
    stored: torch.dtype
    served: torch.dtype
    file_identity: FileIdentity


@dataclass(frozen=True, slots=True)
class ExpertExtent:
    """One expert on disk.

    Attributes:
        name: The name of the experts module, and the expert's number.
        ranges: The bytes to read.
        source: The origin of the bytes, for metrics: ``"store"`` or ``"checkpoint"``.
    """

    name: str
    ranges: tuple[FileRange, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Extents:
    """Everything that is read from disk for forward passes.

    Attributes:
        blocks: The streamed blocks, in execution order; none if Accelerate streams them.
        experts: The experts that are read one by one, by name.
    """

    blocks: tuple[BlockExtent, ...] = ()
    experts: Mapping[str, ExpertExtent] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that a forward pass reads at most."""
        experts = (part.length for expert in self.experts.values() for part in expert.ranges)
        return sum(block.size for block in self.blocks) + sum(experts)

    @property
    def source(self) -> str | None:
        """The origin of the first bytes: ``"store"`` or ``"checkpoint"``; None without any."""
        sources = [block.source for block in self.blocks[:1]]
        sources += [expert.source for expert in self.experts.values()]
        return next(iter(sources), None)


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """The tensors of one expert in a slot.

    Attributes:
        tensors: The tensors, named as the module's parameters.
        size: Bytes of a slot, whole pages.
    """

    tensors: tuple[TensorView, ...]
    size: int

    @classmethod
    def of(cls, module: nn.Module) -> SlotLayout:
        """Return the layout of a module's experts; the module may be on the meta device."""
        tensors = expert_tensors(module)
        *offsets, size = slot_offsets(t.nbytes // t.shape[0] for t in tensors.values())
        views = (
            TensorView(name, tensor.dtype, tuple(tensor.shape[1:]), at)
            for (name, tensor), at in zip(tensors.items(), offsets, strict=True)
        )
        return cls(tuple(views), size)


def expert_name(module_name: str, expert: int) -> str:
    """Return the name of one expert, which is also its name in an offload store."""
    return f"{module_name}.{expert}"


def parameters_of_experts(
    model: nn.Module, module_names: Iterable[str]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return for each expert its tensors, on the meta device, as they are served and stored."""
    return {
        expert_name(name, expert): {
            key: torch.empty(tensor.shape[1:], dtype=tensor.dtype, device="meta")
            for key, tensor in tensors.items()
        }
        for name in module_names
        for tensors in [expert_tensors(model.get_submodule(name))]
        for expert in range(_count(tensors))
    }


class StoredExperts:
    """Finds experts in a checkpoint's own files."""

    def __init__(
        self, model: nn.Module, stored: Mapping[str, StoredParameter], files: Iterable[Path]
    ) -> None:
        """Read the headers of the files.

        Args:
            model: The model, which may be on the meta device.
            stored: For each parameter of the experts, how it is made of stored tensors.
            files: The checkpoint's files.
        """
        self._model = model
        self._stored = stored
        self._tensors: dict[str, StoredTensor] = {}
        self._identities: dict[Path, FileIdentity] = {}
        for file in files:
            self._tensors |= stored_tensors(file)
            self._identities[file] = identify_file(file.stat())

    def find(self, module_name: str) -> tuple[ExpertExtent, ...] | None:
        """Return the extents of a layer's experts.

        Returns:
            The extents, or None if the experts are made of stored tensors in another way than by
            putting them one behind the other.
        """
        module = self._model.get_submodule(module_name)
        count = _count(expert_tensors(module))
        parts: list[list[FileRange]] = [[] for _ in range(count)]
        for view in SlotLayout.of(module).tensors:
            columns = self._columns(f"{module_name}.{view.name}", count)
            if columns is None:
                return None
            for own, tensors in zip(parts, zip(*columns, strict=True), strict=True):
                if not _make_up(view, tensors):
                    return None
                own.extend(self._ranges(view, tensors))
        return tuple(
            ExpertExtent(expert_name(module_name, expert), tuple(ranges), "checkpoint")
            for expert, ranges in enumerate(parts)
        )

    def _columns(self, parameter: str, count: int) -> list[list[StoredTensor]] | None:
        """Return for each part of a parameter the tensor of each expert; None without them."""
        stored = self._stored.get(parameter)
        if stored is None or not self._tensors.keys() >= {*chain.from_iterable(stored.parts)}:
            return None
        columns = [[self._tensors[name] for name in part] for part in stored.parts]
        if not stored.is_merged:
            columns = [list(_entries(*column)) for column in columns]
        return columns if all(len(column) == count for column in columns) else None

    def _ranges(self, view: TensorView, tensors: Sequence[StoredTensor]) -> Iterator[FileRange]:
        at = view.at
        for tensor in tensors:
            file, length = tensor.file, tensor.end - tensor.begin
            identity = self._identities[file]
            yield FileRange(file, tensor.begin, length, at, tensor.dtype, view.dtype, identity)
            at += length // tensor.dtype.itemsize * view.dtype.itemsize


def in_store(block: BlockExtent) -> ExpertExtent:
    """Return the extent of an expert that a store holds in the layout of a slot."""
    ranges = (
        FileRange(
            *(segment.file, segment.start, segment.needed, segment.at),
            *(torch.uint8, torch.uint8, segment.file_identity),
        )
        for segment in block.segments
    )
    return ExpertExtent(block.name, tuple(ranges), block.source)


def _count(tensors: Mapping[str, torch.Tensor]) -> int:
    return next(iter(tensors.values())).shape[0]


def _entries(tensor: StoredTensor) -> Iterator[StoredTensor]:
    """Yield the entry of each expert in a tensor with all of them."""
    count, *shape = tensor.shape
    size = (tensor.end - tensor.begin) // max(1, count)
    for begin in range(tensor.begin, tensor.end, max(1, size)):
        yield replace(tensor, begin=begin, end=begin + size, shape=tuple(shape))


def _make_up(view: TensorView, tensors: Sequence[StoredTensor]) -> bool:
    """Return whether tensors, put one behind the other, are the served tensor."""
    if not all(len(tensor.shape) == len(view.shape) for tensor in tensors):
        return False
    if not all(tensor.begin % tensor.dtype.itemsize == 0 for tensor in tensors):
        return False
    if not view.shape:
        return len(tensors) == 1  # a scale of a whole matrix
    first, *inner = view.shape
    return (
        all(list(tensor.shape[1:]) == inner for tensor in tensors)
        and sum(tensor.shape[0] for tensor in tensors) == first
    )
