"""How kernels are timed against each other in the calls of a layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from predictor.linear.kernels import Kernel
from predictor.linear.trial import Trial
from predictor.linear.weight import LinearWeight

WEIGHT = LinearWeight.plain(torch.zeros(1, 1))


class _Clock:
    """A clock that the kernels of a test move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def kernel(self, title: str, *seconds: float) -> Kernel:
        """Return a kernel whose calls take so long; the last time goes on."""
        times = self._endless(seconds)

        def compute(x: torch.Tensor, *_: object) -> torch.Tensor:
            self.now += next(times)
            return x

        return Kernel(title, compute)

    @staticmethod
    def _endless(seconds: tuple[float, ...]) -> Iterator[float]:
        yield from seconds
        while True:
            yield seconds[-1]


def _run(kernels: tuple[Kernel, ...], clock: _Clock) -> Trial:
    """Return a trial that is complete."""
    winners: list[Kernel] = []
    trial = Trial(kernels, winners.append, clock)
    assert trial.best is None
    while not winners:
        trial(torch.zeros(1, 1), WEIGHT, None)
    assert winners == [trial.best]
    return trial


def test_the_quickest_kernel_wins_after_as_many_calls_of_each() -> None:
    clock = _Clock()
    kernels = (clock.kernel("a", 1.3), clock.kernel("b", 1.0), clock.kernel("c", 1.4))
    trial = _run(kernels, clock)
    assert [len(times) for times in trial.seconds.values()] == [4, 4, 4]
    assert trial.best == kernels[1]


def test_a_disturbed_call_does_not_count() -> None:
    clock = _Clock()
    kernels = (clock.kernel("a", 1.3), clock.kernel("b", 9.0, 1.0, 7.0, 1.0))
    trial = _run(kernels, clock)
    assert trial.best == kernels[0]  # nothing takes that long to compile
    clock = _Clock()
    kernels = (clock.kernel("a", 1.3), clock.kernel("b", 4.0, 1.0, 7.0, 1.0))
    trial = _run(kernels, clock)
    assert trial.best == kernels[1]


def test_the_first_kernel_stays_if_another_is_hardly_quicker() -> None:
    clock = _Clock()
    kernels = (clock.kernel("a", 1.0), clock.kernel("b", 0.97))
    trial = _run(kernels, clock)
    assert trial.best == kernels[0]


def test_hopeless_kernels_get_few_calls() -> None:
    clock = _Clock()
    kernels = (clock.kernel("a", 1.0), clock.kernel("b", 1.6), clock.kernel("c", 50.0))
    trial = _run(kernels, clock)
    assert [len(times) for times in trial.seconds.values()] == [4, 2, 1]


def test_a_kernel_that_was_ahead_by_chance_is_overtaken() -> None:
    clock = _Clock()
    kernels = (clock.kernel("a", 3.0, 1.0), clock.kernel("b", 2.0))
    trial = _run(kernels, clock)
    assert trial.best == kernels[0]
