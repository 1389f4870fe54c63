"""The accelerators that torch sees, with their free memory: the truth that the Pod is held to.

Environment variables such as ``NVIDIA_VISIBLE_DEVICES`` are only hints (images bake ``all``, CDI
leaves it unset); what counts is what torch can open. Sharing and the Pod's limits are the business
of `compare`.
"""

from __future__ import annotations

from typing import Protocol

from predictor.errors import ConfigurationError
from predictor.pod.resources import Accelerator


class Backend(Protocol):
    """The part of ``torch.cuda`` and ``torch.xpu`` that is used here."""

    def device_count(self) -> int:
        """Returns how many devices there are."""

    def get_device_name(self, device: int, /) -> str:
        """Returns what the driver calls a device."""

    def mem_get_info(self, device: int, /) -> tuple[int, int]:
        """Returns a device's free and total bytes."""


def read_accelerators() -> tuple[Accelerator, ...]:
    """Returns every device that torch sees, in torch's order; empty without any.

    The free bytes are what the driver says after this process's own context was made on the device
    (asking makes it); for a MIG slice free and total are the slice's.

    Raises:
        ConfigurationError: A device is there and cannot be asked for its memory.
    """
    import torch

    return (*read_backend("cuda", torch.cuda), *read_backend("xpu", torch.xpu))


def read_backend(kind: str, backend: Backend) -> tuple[Accelerator, ...]:
    """Returns the devices of one of torch's device types.

    Raises:
        ConfigurationError: A device is there and cannot be asked for its memory.
    """
    return tuple(_read_device(kind, backend, index) for index in range(backend.device_count()))


def _read_device(kind: str, backend: Backend, index: int) -> Accelerator:
    try:
        name = backend.get_device_name(index)
        free, total = backend.mem_get_info(index)
    except RuntimeError as error:  # torch's errors of the driver are all RuntimeErrors
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"torch sees {kind}:{index} but cannot ask it for its memory ({reason}); check the "
            f"driver on the node, or hide the device from this container"
        ) from error
    return Accelerator(index=index, kind=kind, name=name, total=total, free=free)
