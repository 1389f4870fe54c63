"""Find the module that has to have each weight while it runs, by watching forward passes.

Most weights are read by the module that owns them. Some modules read the weights of their children
themselves, or those of a module elsewhere: a convolution's in a decoding step, an embedding's row
for padding, or only its device. Such a weight has to be there while the reading module runs, and
not only while its owner does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from predictor.private.model_classes import set_device

_ALIKE_ON_META = frozenset(
    {
        *("shape", "dtype", "ndim", "requires_grad", "layout", "itemsize", "nbytes"),
        *("size", "dim", "numel", "element_size", "stride", "is_floating_point", "is_contiguous"),
    }
)
"""What torch knows of a weight on the meta device as well: to ask for it is not to read."""


_Key = tuple[bool, str]


class WeightReads(TorchFunctionMode):
    """Watches the forward passes within its context."""

    def __init__(self, model: PreTrainedModel, blocks: Sequence[str]) -> None:
        """Take a model.

        Args:
            model: The model, on the meta device.
            blocks: The names of its blocks.
        """
        super().__init__()
        self.readers = Readers(blocks)
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._names: dict[int, list[str]] = {}
        for name, weight in model.named_parameters(remove_duplicate=False):
            self._names.setdefault(id(weight), []).append(name)
        self._running: list[str] = []
        self._hooks = contextlib.ExitStack()
        # A model that is asked for its device would look at the first weight's.
        set_device(model, torch.device("meta"))

    def __enter__(self) -> Self:
        """Begin to watch."""
        # Hooks of all modules leave the modules themselves as they are, and so of one kind.
        self._hooks.callback(register_module_forward_pre_hook(self._enter).remove)
        left = register_module_forward_hook(self._leave, always_call=True)
        self._hooks.callback(left.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """End watching."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()
        self._running.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._running and _name_of(func) not in _ALIKE_ON_META:
            for weight in _weights((*args, *(kwargs or {}).values())):
                self._note(weight)
        return func(*args, **(kwargs or {}))

    def _enter(self, module: nn.Module, _: Any) -> None:
        name = self._modules.get(id(module))
        if name is not None:
            self._running.append(name)
            self.readers.note_call(name)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        # Modules that fail are left, too: what is read after a pass that failed, no module reads.
        if self._running and self._modules.get(id(module)) == self._running[-1]:
            self._running.pop()

    def _note(self, weight: nn.Parameter) -> None:
        names = self._names.get(id(weight), [])
        # Of the names of a tied weight, the one whose owner runs is the one that is read.
        owned = [name for name in names if _owner(name) in self._running]
        for name in owned or names:
            around = (x for x in reversed(self._running) if is_within(_owner(name), x))
            self.readers.note(name, next(around, ""))


class Readers:
    """The module that reads each weight, as far as that was watched.

    Blocks that did not run are taken to be read as the others are, and any other weight that was
    not read to be read by its owner.
    """

    def __init__(self, blocks: Iterable[str] = ()) -> None:
        """Begin with no reads of a model with these blocks."""
        self._blocks = frozenset(blocks) - {""}
        self._readers: dict[_Key, str | None] = {}
        self._called: set[_Key] = set()

    def note_call(self, module: str) -> None:
        """Note that a module was called."""
        self._called.add(self._key(module))

    def note(self, weight: str, reader: str) -> None:
        """Note that a module read a weight; of several, the outermost counts."""
        block, key = _innermost(weight, self._blocks), self._key(weight)
        own = reader.removeprefix(block) if is_within(reader, block) else None
        outer = self._readers.get(key, own)
        self._readers[key] = None if own is None or outer is None else min(own, outer, key=len)

    def of(self, weight: str) -> str | None:
        """Return the module that reads a weight; None for one around the weight's block."""
        key = self._key(weight)
        if key not in self._readers:
            return _owner(weight)
        own = self._readers[key]
        return None if own is None else _innermost(weight, self._blocks) + own

    def is_called(self, module: str) -> bool:
        """Return whether a module was called, or its like in another block."""
        return self._key(module) in self._called

    def _key(self, name: str) -> _Key:
        """Return whether a name lies in a block, and the rest of it."""
        block = _innermost(name, self._blocks)
        return bool(block), name.removeprefix(block)


def _innermost(name: str, blocks: Collection[str]) -> str:
    while name and name not in blocks:
        name = _owner(name)
    return name


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def is_within(module: str, outer: str) -> bool:
    """Return whether a module is another one or lies in it, by their names."""
    return not outer or module == outer or module.startswith(f"{outer}.")


def _name_of(func: Any) -> str:
    """Return the name of a function of torch, or of the attribute that it is the getter of."""
    name: str = getattr(func, "__name__", "")
    return getattr(func.__self__, "__name__", "") if name == "__get__" else name


def _weights(values: Iterable[Any]) -> Iterator[nn.Parameter]:
    for value in values:
        if isinstance(value, nn.Parameter):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _weights(value)
