"""The accelerators that torch sees, with their free memory.

Environment variables such as ``NVIDIA_VISIBLE_DEVICES`` are only hints (images bake ``all``, CDI
leaves it unset), so the devices that torch can open count. Shared devices and the Pod's limits are
left to `compare`.
"""

from __future__ import annotations

from typing import Protocol

from predictor.errors import ConfigurationError
from predictor.pod.resources import Accelerator


class Backend(Protocol):
    """The part of ``torch.cuda`` and ``torch.xpu`` that is used here."""

    def device_count(self) -> int:
        """Return how many devices there are."""

    def get_device_name(self, device: int, /) -> str:
        """Return the driver's name of a device."""

    def mem_get_info(self, device: int, /) -> tuple[int, int]:
        """Return a device's free and total bytes."""


def read_accelerators() -> tuple[Accelerator, ...]:
    """Return every device that torch sees, in torch's order; empty without any.

    The driver reports the free bytes after this process's context was created on the device, which
    the query itself does. For a MIG slice free and total bytes are those of the slice.

    Raises:
        ConfigurationError: A device does not report its memory.
    """
    import torch

    return (*read_backend("cuda", torch.cuda), *read_backend("xpu", torch.xpu))


def read_backend(kind: str, backend: Backend) -> tuple[Accelerator, ...]:
    """Return the devices of one of torch's device types.

    Raises:
        ConfigurationError: A device does not report its memory.
    """
    return tuple(_read_device(kind, backend, index) for index in range(backend.device_count()))


def _read_device(kind: str, backend: Backend, index: int) -> Accelerator:
    try:
        name = backend.get_device_name(index)
        free, total = backend.mem_get_info(index)
    except RuntimeError as error:  # torch raises RuntimeError for every driver error
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"torch sees {kind}:{index} but cannot ask it for its memory ({reason}); check the "
            f"driver on the node, or hide the device from this container"
        ) from error
    return Accelerator(index=index, kind=kind, name=name, total=total, free=free)
