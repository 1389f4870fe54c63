"""The bytes of live storages, counted by watching torch's operations, on the meta device too."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Set
from typing import Any

import torch

from predictor.private.torch import TorchDispatchMode, tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of live storages, by watching the results of every operation.

    Attributes:
        now: Bytes that are alive.
        peak: Most bytes that were alive at one time.
    """

    def __init__(self, excluded: Set[torch.UntypedStorage] = frozenset()) -> None:
        """Begin with nothing alive.

        Args:
            excluded: Storages that are not counted, since they outlive the run: the weights.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._excluded = excluded
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    def count(self, tensors: Iterator[torch.Tensor]) -> None:
        """Count the storages of these tensors until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._seen and storage not in self._excluded:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, count: int) -> None:
        self.now -= count
