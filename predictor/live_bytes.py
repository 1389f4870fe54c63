"""The bytes of live storages, counted by watching torch's operations, on the meta device too."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Set
from typing import Any

import torch

from predictor.private.torch import TorchDispatchMode, tree_leaves


class TooManyOperations(Exception):
    """More operations than were allowed."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of live storages, by watching the results of every operation.

    Attributes:
        now: Bytes that are alive.
        peaks: Most bytes that were alive at one time, by the scope in which they were.
        scope: The name of the scope that runs; one without a name if nothing is set.
        operations: How many operations ran.
    """

    def __init__(
        self,
        excluded: Set[torch.UntypedStorage] = frozenset(),
        *,
        most_operations: int | None = None,
    ) -> None:
        """Begin with nothing alive.

        Args:
            excluded: Storages that are not counted, since they outlive the run: the weights.
            most_operations: With the operation after so many, `TooManyOperations` is raised.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peaks: dict[str, int] = {}
        self.scope = ""
        self.operations = 0
        self._most_operations = most_operations
        self._excluded = excluded
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @property
    def peak(self) -> int:
        """Most bytes that were alive at one time."""
        return max(self.peaks.values(), default=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if self._most_operations is not None and self.operations > self._most_operations:
            raise TooManyOperations
        result = func(*args, **(kwargs or {}))
        self.count(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count the storages of these tensors until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._seen and storage not in self._excluded:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.note(self.scope, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())

    def note(self, scope: str, alive: int) -> None:
        """Note that so many bytes were alive in a scope."""
        self.peaks[scope] = max(self.peaks.get(scope, 0), alive)

    def _freed(self, count: int) -> None:
        self.now -= count
