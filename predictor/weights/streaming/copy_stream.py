"""Copies from main memory to an accelerator, beside its computation and ordered by events.

Copies run on a stream of their own, from page-locked memory. Events order them with the
computation, so that neither the computing thread nor the accelerator waits longer than it has to.
Facts about page-locked memory, streams and events: "CUDA C++ Programming Guide", sections
"Page-Locked Host Memory" and "Asynchronous Concurrent Execution".
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from predictor.errors import LoadFailed
from predictor.quantity import format_bytes
from predictor.weights.direct_io import AlignedBuffer

logger = logging.getLogger(__name__)

_PORTABLE = 1
"""``cudaHostRegisterPortable``: page-locked for every device of the process."""

Event = Any
"""A point in the work of an accelerator: a `torch.Event` of its kind."""


class CopyStream:
    """Orders copies to an accelerator with its computation; any backend with streams will do."""

    def __init__(self, device: torch.device) -> None:
        """Create the stream for copies to a device."""
        self._device = device
        self._backend: Any = torch.get_device_module(device)
        self._stream = self._backend.Stream(device)
        # Otherwise CUDA keeps a processor busy while a thread waits.
        self._event_options = {"blocking": True} if device.type == "cuda" else {}
        self._waits: deque[tuple[Event, Event]] = deque()

    def copy(
        self, into: Sequence[torch.Tensor], source: Sequence[torch.Tensor], after: Event
    ) -> Event:
        """Enqueue copies that start after an event, and return the event of their end."""
        with self._backend.stream(self._stream):
            self._stream.wait_event(after)
            for target, tensor in zip(into, source, strict=True):
                target.copy_(tensor, non_blocking=True)
            return self._stream.record_event(self._backend.Event(**self._event_options))

    def record(self) -> Event:
        """Return the event that the computation enqueued so far has ended."""
        event = self._backend.Event(enable_timing=True)
        event.record(self._backend.current_stream(self._device))
        return event

    def wait(self, event: Event, *, since: Event) -> None:
        """Make the computation wait for an event, and count the time from `since` as stalled."""
        self._backend.current_stream(self._device).wait_event(event)
        self._waits.append((since, self.record()))

    def synchronize(self, event: Event) -> None:
        """Block the calling thread until an event."""
        event.synchronize()

    def take_stall_seconds(self) -> float:
        """Return the seconds of all waits that have ended since the last call."""
        milliseconds = 0.0
        while self._waits and self._waits[0][1].query():
            began, ended = self._waits.popleft()
            milliseconds += began.elapsed_time(ended)
        return milliseconds / 1000


def page_lock(buffer: AlignedBuffer) -> None:
    """Page-lock a buffer until it is freed, so that a GPU copies from it without the processor.

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


def page_lock_within(
    limit: int,
    buffers: Sequence[AlignedBuffer],
    lock: Callable[[AlignedBuffer], None] = page_lock,
) -> int:
    """Page-lock buffers within a limit, and return the bytes that are page-locked.

    A GPU copies more slowly from the buffers that are left.

    Args:
        limit: Most bytes.
        buffers: The buffers.
        lock: Page-locks a buffer.
    """
    size = sum(buffer.tensor.nbytes for buffer in buffers)
    logger.info("Page-locking %s of main memory, to be copied to a GPU", format_bytes(size))
    locked = 0
    for buffer in buffers:
        if locked + buffer.tensor.nbytes <= limit:
            lock(buffer)
            locked += buffer.tensor.nbytes
    if locked < size:
        pageable = format_bytes(size - locked)
        logger.warning("%s of that are not page-locked, and slower to copy", pageable)
    return locked
