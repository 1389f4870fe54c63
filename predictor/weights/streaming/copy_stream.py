"""The way from main memory to an accelerator: copies beside the computation, ordered by events.

Copies run on a stream of their own and from page-locked memory; events order them with the
computation, so that neither the thread that computes nor the accelerator waits for more than it has
to. Facts about page-locked memory, streams and events: "CUDA C++ Programming Guide", sections
"Page-Locked Host Memory" and "Asynchronous Concurrent Execution".
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from predictor.errors import LoadFailed
from predictor.quantity import format_bytes
from predictor.weights.streaming.direct_io import Buffer

_PORTABLE = 1
"""``cudaHostRegisterPortable``: page-locked for every device of the process."""

Event = Any
"""A moment in what an accelerator does: a `torch.Event` of its kind."""


class Link:
    """Orders copies to an accelerator, of any kind with streams, and what it computes."""

    def __init__(self, device: torch.device) -> None:
        """Makes the stream for copies to a device."""
        self._device = device
        self._backend: Any = torch.get_device_module(device)
        self._stream = self._backend.Stream(device)
        # Else CUDA keeps a processor busy while a thread waits.
        self._ends = {"blocking": True} if device.type == "cuda" else {}
        self._waits: deque[tuple[Event, Event]] = deque()

    def copy(
        self, into: Sequence[torch.Tensor], source: Sequence[torch.Tensor], after: Event
    ) -> Event:
        """Begins to copy when an event has happened; returns the event of the end."""
        with self._backend.stream(self._stream):
            self._stream.wait_event(after)
            for target, tensor in zip(into, source, strict=True):
                target.copy_(tensor, non_blocking=True)
            return self._stream.record_event(self._backend.Event(**self._ends))

    def mark(self) -> Event:
        """Returns the event that all that was asked of the accelerator so far is computed."""
        event = self._backend.Event(enable_timing=True)
        event.record(self._backend.current_stream(self._device))
        return event

    def wait(self, event: Event, *, since: Event) -> None:
        """Has what is computed from now on wait for an event; the time from `since` is lost."""
        self._backend.current_stream(self._device).wait_event(event)
        self._waits.append((since, self.mark()))

    def finish(self, event: Event) -> None:
        """Makes the thread that calls this wait for an event."""
        event.synchronize()

    def stalled(self) -> float:
        """Returns the seconds that were found to be lost since the last call."""
        milliseconds = 0.0
        while self._waits and self._waits[0][1].query():
            began, ended = self._waits.popleft()
            milliseconds += began.elapsed_time(ended)
        return milliseconds / 1000


def page_lock(buffer: Buffer) -> None:
    """Keeps a buffer's pages where they are, so that a GPU copies from them by itself.

    Raises:
        LoadFailed: The driver refuses.
    """
    cuda: Any = torch.cuda
    runtime = cuda.cudart()
    address, size = buffer.tensor.data_ptr(), buffer.tensor.nbytes
    result = runtime.cudaHostRegister(address, size, _PORTABLE)
    if int(result) != 0:
        raise LoadFailed(
            f"The driver refuses to page-lock {format_bytes(size)} more of main memory "
            f"({runtime.cudaGetErrorString(result)}); lower --pinned_memory_fraction, or set it to "
            "0 to do without."
        )
    weakref.finalize(buffer, runtime.cudaHostUnregister, address).atexit = False
