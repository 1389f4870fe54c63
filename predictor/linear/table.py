"""Which kernel computes a linear layer: for each kind of layers and each number of rows one.

A model has one `LinearKernels`, and its layers ask it, or the `LayerKernels` of their kind, which
is quicker. The choice depends on the rows of a forward pass. So a row's value may change with the
company that it has, by as much as kernels differ: not in float32, and within the rounding of the
serving dtype otherwise (see `kernels`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch

from predictor.linear.kernels import Compute, Kernel, LayerKind, allocate_most, kernels_for
from predictor.linear.trial import Trial
from predictor.linear.weight import LinearWeight

Lookup = Callable[[str], int | None]
"""Returns a number by its name; None if there is none."""

BUCKETS = 12
"""Buckets of rows: 1, 2, 3 to 4, 5 to 8, and so on; the last one has no end."""


def bucket_of(rows: int) -> int:
    """Return the bucket of so many rows."""
    return min(max(rows - 1, 0).bit_length(), BUCKETS - 1)


class LayerKernels:
    """The kernels of one kind of layers, by buckets of rows.

    Attributes:
        kind: The kind.
        candidates: The kernels that can compute it.
        chosen: The chosen kernel of each bucket.
        trials: The trials under way, by bucket.
    """

    __slots__ = ("_computes", "candidates", "chosen", "kind", "trials")

    def __init__(self, kind: LayerKind) -> None:
        """Begin with the kernel that needs no timing to be good."""
        self.kind = kind
        self.candidates = kernels_for(kind)
        self.chosen: list[Kernel] = [self.candidates[0]] * BUCKETS
        self.trials: dict[int, Trial] = {}
        self._computes: list[Compute] = [kernel.compute for kernel in self.chosen]

    def choose(self, bucket: int, kernel: Kernel) -> None:
        """Use a kernel from now on, and end a trial."""
        self.trials.pop(bucket, None)
        self.chosen[bucket] = kernel
        self._computes[bucket] = kernel.compute

    def begin_trial(self, bucket: int) -> None:
        """Time the candidates in calls with such rows, until there is a winner."""
        if len(self.candidates) > 1:
            trial = Trial(self.candidates, partial(self.choose, bucket))
            self._computes[bucket] = self.trials[bucket] = trial

    def end_trial(self, bucket: int) -> None:
        """Choose the best so far; without a call the choice stays."""
        if bucket in self.trials:
            self.choose(bucket, self.trials[bucket].best or self.chosen[bucket])

    def linear(
        self, x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute a layer of this kind.

        Args:
            x: The inputs, of shape (..., in).
            weight: The weights.
            bias: The bias, of shape (out,), or None.
        """
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if x.is_meta:
            result = allocate_most(rows, weight, bias)
        else:
            result = self._computes[bucket_of(len(rows))](rows, weight, bias)
        return result if rows is x else result.view(*x.shape[:-1], result.shape[-1])


class LinearKernels:
    """The kernels of one model's linear layers."""

    def __init__(self) -> None:
        """Begin without any kind of layers."""
        self._by_kind: dict[LayerKind, LayerKernels] = {}
        self._lookup: Lookup | None = None
        self._on_trial: set[int] = set()

    def __iter__(self) -> Iterator[LayerKernels]:
        """Return the kernels of all kinds so far."""
        return iter(self._by_kind.values())

    def of(self, kind: LayerKind) -> LayerKernels:
        """Return the kernels of a kind of layers."""
        kernels = self._by_kind.get(kind)
        if kernels is None:
            kernels = self._by_kind[kind] = LayerKernels(kind)
            if self._lookup is not None:
                _restore(kernels, self._lookup)
            for bucket in self._on_trial:
                kernels.begin_trial(bucket)
        return kernels

    def linear(
        self, x: torch.Tensor, weight: LinearWeight, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute a layer of any kind; see `LayerKernels.linear`."""
        kind = LayerKind(
            weight.format, x.dtype, x.device.type, weight.out_features, weight.in_features
        )
        return self.of(kind).linear(x, weight, bias)

    def begin_trials(self, bucket: int) -> None:
        """Time the kernels of all layers in forward passes with such rows, each until it wins."""
        self._on_trial.add(bucket)
        for kernels in self:
            kernels.begin_trial(bucket)

    def has_open_trials(self, bucket: int) -> bool:
        """Return whether layers of a kind that was called need more calls."""
        trials = (kernels.trials.get(bucket) for kernels in self)
        return any(trial is not None and trial.best is not None for trial in trials)

    def end_trials(self, bucket: int) -> None:
        """Choose the winners.

        Kinds that had no call, as the head of a model in long passes, go with most of the others.
        """
        self._on_trial.discard(bucket)
        uncalled = [one for one in self if bucket in one.trials and not one.trials[bucket].best]
        timed = [one for one in self if one not in uncalled]
        for kernels in self:
            kernels.end_trial(bucket)
        for kernels in uncalled:
            like = [one.chosen[bucket] for one in timed if one.candidates == kernels.candidates]
            if like:
                kernels.choose(bucket, Counter(like).most_common(1)[0][0])

    def restore(self, lookup: Lookup) -> None:
        """Choose what was chosen before, and time the rest when it is called.

        This holds for the kinds so far and for those to come.

        Args:
            lookup: Returns a number by its name, as `numbers` names them; None if it has none.
        """
        self._lookup = lookup
        for kernels in self:
            _restore(kernels, lookup)

    def numbers(self) -> dict[str, int]:
        """Return the choices, but not the trials under way, as numbers by name."""
        return {
            _name(kernels.kind, bucket): kernels.candidates.index(kernel)
            for kernels in self
            if len(kernels.candidates) > 1
            for bucket, kernel in enumerate(kernels.chosen)
            if bucket not in kernels.trials
        }


def _restore(kernels: LayerKernels, lookup: Lookup) -> None:
    for bucket in range(BUCKETS):
        number = lookup(_name(kernels.kind, bucket))
        if number is not None and 0 <= number < len(kernels.candidates):
            kernels.choose(bucket, kernels.candidates[number])
        else:
            kernels.begin_trial(bucket)


def _name(kind: LayerKind, bucket: int) -> str:
    title = "plain" if kind.format is None else kind.format.title
    shape = f"{kind.out_features}x{kind.in_features}"
    return f"linear {title} {kind.dtype} {kind.device} {shape} {1 << bucket}"


KERNELS = LinearKernels()
"""The kernels of the model that this process serves."""
