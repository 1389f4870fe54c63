"""The form of values on the meta device: all that can be known of tensors that have no contents.

Two calls with inputs of the same form do the same on meta. A form can be made a value again, with
new tensors that share memory where those of the first value did.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from predictor.private.cache_layers import is_cache_layer

SCALARS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
"""Classes of values that are compared as they are."""


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A tensor without contents.

    Attributes:
        shape: Its shape.
        strides: Its strides.
        dtype: Its dtype.
        offset: Where it begins in its storage, in elements. It tells no forms apart, such as of
            the parts that blocks get of one tensor for all: no size depends on it.
        storage: The number of its storage among those of the same value.
        nbytes: Bytes of its storage.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    offset: int = field(compare=False)
    storage: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number, a text, or another value that does not change; ``1`` and ``True`` differ."""

    kind: type
    value: Hashable


@dataclass(frozen=True, slots=True)
class Container:
    """A list, a tuple, a mapping, or a layer of a cache with its attributes."""

    kind: type
    keys: tuple[Hashable, ...]
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """Any other object. It equals itself alone, as part of the same form."""

    value: Any


Form = TensorForm | Scalar | Container | Opaque


@dataclass(slots=True)
class Reader:
    """Reads the forms of several values, which may share memory.

    Attributes:
        storages: The number of each storage, by its identity.
        tensors: By the number of a storage, the first tensor in it that was read.
    """

    storages: dict[int, int] = field(default_factory=dict)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)

    def read(self, value: Any) -> Form:
        """Return the form of a value."""
        if isinstance(value, torch.Tensor):
            return self._read_tensor(value)
        if isinstance(value, SCALARS):
            return Scalar(type(value), value)
        content = _content(value)
        if content is None:
            return Opaque(value)
        return Container(type(value), tuple(content), tuple(map(self.read, content.values())))

    def _read_tensor(self, tensor: torch.Tensor) -> TensorForm:
        storage = tensor.untyped_storage()
        number = self.storages.setdefault(id(storage), len(self.storages))
        self.tensors.setdefault(number, tensor)
        shape, strides = tuple(tensor.shape), tensor.stride()
        offset = int(tensor.storage_offset())
        return TensorForm(shape, strides, tensor.dtype, offset, number, storage.nbytes())


@dataclass(slots=True)
class Maker:
    """Makes values of forms that were read by one reader.

    Attributes:
        given: By the number of a storage, a tensor in one that is used and not made anew.
        storages: By the number of a storage, all of it.
    """

    given: Mapping[int, torch.Tensor] = field(default_factory=dict)
    storages: dict[int, torch.Tensor] = field(default_factory=dict)

    def make(self, form: Form) -> Any:
        """Return a value of this form, whose tensors are new."""
        if isinstance(form, TensorForm):
            return self._make_tensor(form)
        if isinstance(form, Scalar | Opaque):
            return form.value
        return _filled(form, [self.make(item) for item in form.items])

    def _make_tensor(self, form: TensorForm) -> torch.Tensor:
        if form.storage not in self.storages:
            self.storages[form.storage] = self._whole(form)
        whole = self.storages[form.storage].view(form.dtype)
        return whole.as_strided(form.shape, form.strides, form.offset)

    def _whole(self, form: TensorForm) -> torch.Tensor:
        given = self.given.get(form.storage)
        if given is not None:
            return given.as_strided((form.nbytes // given.itemsize,), (1,), 0)
        return torch.empty(form.nbytes // form.dtype.itemsize, dtype=form.dtype, device="meta")


def leaves(form: Form) -> Iterator[TensorForm | Scalar | Opaque]:
    """Yield the parts of a form that contain no others."""
    if not isinstance(form, Container):
        yield form
        return
    for item in form.items:
        yield from leaves(item)


def is_repeatable(form: Form) -> bool:
    """Return whether a value of this form can be made again without sharing an unknown object."""
    return not any(isinstance(leaf, Opaque) for leaf in leaves(form))


def storage_bytes(form: Form, but: Collection[int] = ()) -> int:
    """Return the bytes of the storages of all tensors of a value, but those of some numbers."""
    tensors = (leaf for leaf in leaves(form) if isinstance(leaf, TensorForm))
    return sum({leaf.storage: leaf.nbytes for leaf in tensors if leaf.storage not in but}.values())


def _content(value: Any) -> dict[Hashable, Any] | None:
    """Return the parts of a value by their keys; None if they are not known."""
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        return dict(value)
    return vars(value) if is_cache_layer(value) else None


def _filled(form: Container, items: list[Any]) -> Any:
    if is_cache_layer(form.kind):
        layer: Any = object.__new__(form.kind)
        vars(layer).update(zip(form.keys, items, strict=True))
        return layer
    if issubclass(form.kind, Mapping):
        return form.kind(zip(form.keys, items, strict=True))  # type: ignore[call-arg]
    if hasattr(form.kind, "_fields"):
        return form.kind(*items)
    return form.kind(items)  # type: ignore[call-arg]
