"""The share of a GPU's link that streamed blocks reach, simulated: nothing here needs a GPU.

The predictor's own `DeviceBlockLoader`, with its `PrefetchRing`, decides which block is copied next
and into which buffer, and what waits for what. A stand-in for its copy stream counts time instead
of copying: on the clock of the thread that starts kernels, of the thread that enqueues copies, of
the link, and of the GPU's computation.

Taken for granted: a copy takes its bytes at the link's rate; the kernels of a block follow each
other, and end no earlier than the last one is started; a forward pass begins when the one before
has ended, after some time of the processor; the two threads do not hinder each other. With several
GPUs, one thread starts all kernels, and a layer begins when the one before has ended.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import finish, table

from predictor.metrics import WeightMetrics
from predictor.placement.buffers import STREAM_BUFFERS
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.extents import TensorView
from predictor.weights.streaming.device_loader import DeviceBlockLoader, HostBlock

_SETTLED, _COUNTED = 3, 4
"""Forward passes before those that are counted, and how many are."""

_STARTS = [0.05, 0.5, 1.0, 1.6, 1.8]
"""Milliseconds to start the kernels of a layer; the first is that of a CUDA graph."""

Layers = Sequence[int | None]
"""For each layer in execution order the GPU that it is streamed to; None if it stays on one."""


@dataclass(frozen=True, slots=True)
class Times:
    """Times of one forward pass, in seconds.

    Attributes:
        copy: The copy of a block, at the link's own rate.
        compute: The kernels of a layer.
        start: Of the processor, to start the kernels of a layer.
        between: Of the processor, from the end of a forward pass to the first layer of the next.
        staging: Of the thread that enqueues copies, before it enqueues that of a block.
    """

    copy: float
    compute: float
    start: float
    between: float = 0.0
    staging: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """An event.

    Attributes:
        recorded: When a thread recorded it.
        ended: When the work before it ended.
    """

    recorded: float
    ended: float


class Computation:
    """The thread that starts kernels, and the kernels of all GPUs, of which one runs at a time.

    Attributes:
        thread: The thread's clock.
        ended: When the kernels started so far end.
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self.thread = self.ended = 0.0

    def run(self, times: Times) -> None:
        """Start the kernels of a layer."""
        began = max(self.ended, self.thread)
        self.thread += times.start
        self.ended = max(began + times.compute, self.thread)

    def end_pass(self, times: Times) -> None:
        """Wait for all kernels, and do what comes between forward passes."""
        self.thread = max(self.thread, self.ended) + times.between


class Timeline:
    """Stands in for the `CopyStream` of one GPU."""

    def __init__(self, times: Times, computation: Computation) -> None:
        """Begin at 0."""
        self._times, self._computation = times, computation
        self._thread = self._link = 0.0

    def copy(self, into: Any, source: Any, after: Moment) -> Moment:  # noqa: ARG002
        """Copy a block after an event."""
        self._thread = max(self._thread, after.recorded) + self._times.staging
        self._link = max(self._link, self._thread, after.ended) + self._times.copy
        return Moment(self._thread, self._link)

    def record(self) -> Moment:
        """Return the event that the kernels started so far have ended."""
        return Moment(self._computation.thread, self._computation.ended)

    def wait(self, event: Moment, *, since: Moment) -> None:  # noqa: ARG002
        """Let later kernels wait for an event; the thread waits only until it is recorded."""
        self._computation.thread = max(self._computation.thread, event.recorded)
        self._computation.ended = max(self._computation.ended, event.ended)

    def synchronize(self, event: Moment) -> None:
        """Do nothing: the simulation has ended."""

    def take_stall_seconds(self) -> float:
        """Return that nobody counts them."""
        return 0.0


def pass_seconds(times: Times, layers: Layers, *, buffers: int = STREAM_BUFFERS) -> float:
    """Return the seconds of a forward pass, once passes are all alike.

    Args:
        times: The times.
        layers: The layers.
        buffers: Blocks in the memory of each GPU at one time.
    """
    computation = Computation()
    gpus = {gpu for gpu in layers if gpu is not None}
    loaders = {
        gpu: _loader(Timeline(times, computation), layers.count(gpu), buffers) for gpu in gpus
    }
    ends = []
    for _ in range(_SETTLED + _COUNTED):
        for gpu, index in _indices(layers):
            if gpu is not None:
                loaders[gpu].acquire(index)
            computation.run(times)
            if gpu is not None:
                loaders[gpu].release()
        computation.end_pass(times)
        ends.append(computation.thread)
    for loader in loaders.values():
        loader.close()
    return (ends[-1] - ends[-1 - _COUNTED]) / _COUNTED


def link_share(times: Times, layers: Layers, *, buffers: int = STREAM_BUFFERS) -> float:
    """Return the time of all copies over that in which the links could have copied."""
    gpus = {gpu for gpu in layers if gpu is not None}
    copies = sum(gpu is not None for gpu in layers)
    seconds = pass_seconds(times, layers, buffers=buffers)
    return copies * times.copy / (len(gpus) * seconds)


def spread(streamed: int, resident: int) -> Layers:
    """Return layers for one GPU in the order in which the plan spreads those that stay."""
    ranks = [((index + 1) / streamed, 0) for index in range(streamed)]
    ranks += [((index + 1) / resident, 1) for index in range(resident)]
    return [None if stays else 0 for _, stays in sorted(ranks)]


def divided(layers: Layers, gpu_of: Callable[[int], int]) -> Layers:
    """Return layers of which the streamed ones, by their index among these, are on several GPUs."""
    indices = itertools.count()
    return [None if gpu is None else gpu_of(next(indices)) for gpu in layers]


def _loader(timeline: Timeline, blocks: int, buffers: int) -> DeviceBlockLoader:
    buffer = AlignedBuffer(1)
    tensors = (TensorView("weight", torch.uint8, (1,), 0),)
    return DeviceBlockLoader(
        [HostBlock(tensors, buffer)] * blocks,
        None,
        timeline,
        torch.device("cpu"),
        WeightMetrics("link"),
        slots=buffers,
    )


def _indices(layers: Layers) -> Iterator[tuple[int | None, int]]:
    """Yield the GPU of each layer, and its index among the blocks of that GPU."""
    counts: dict[int | None, int] = {}
    for gpu in layers:
        yield gpu, counts.setdefault(gpu, 0)
        counts[gpu] += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulation and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--block", type=float, default=88.1, help="MB of a block")
    add("--link", type=float, default=54.0, help="GB/s of the link")
    add("--compute", type=float, default=0.1, help="ms of a layer's kernels")
    add("--start", type=float, nargs="+", default=_STARTS, help="ms to start these")
    add("--between", type=float, default=2.0, help="ms between forward passes")
    add("--staging", type=float, default=0.0, help="ms to stage a block")
    add("--streamed", type=int, default=18, help="layers that are streamed")
    add("--resident", type=int, default=4, help="layers that stay on a GPU")
    add("--json", type=Path, help="the file to write the numbers to")
    flags = parser.parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all shares of the link, after printing them."""
    times = Times(
        copy=flags.block / flags.link / 1000,
        compute=flags.compute / 1000,
        start=0.0,
        between=flags.between / 1000,
        staging=flags.staging / 1000,
    )
    one, half = spread(flags.streamed, flags.resident), -(-flags.streamed // 2)
    ways: dict[str, tuple[Layers, int]] = {
        f"{buffers} buffers": (one, buffers) for buffers in (STREAM_BUFFERS, 3, 4)
    }
    ways["two GPUs, the first half and the second"] = (
        divided(one, lambda index: index // half),
        STREAM_BUFFERS,
    )
    ways["two GPUs in turns"] = divided(one, lambda index: index % 2), STREAM_BUFFERS
    shares = {
        name: {
            f"{start:g}": link_share(replace(times, start=start / 1000), layers, buffers=buffers)
            for start in flags.start
        }
        for name, (layers, buffers) in ways.items()
    }
    columns = ["share of the link", *(f"{start:g} ms to start" for start in flags.start)]
    rows = [[name, *(f"{share:.2f}" for share in row.values())] for name, row in shares.items()]
    print("Simulated, not run.", table(columns, rows), sep="\n")
    return {"simulated": True, "milliseconds_to_start": flags.start, "shares": shares}


if __name__ == "__main__":
    sys.exit(main())
