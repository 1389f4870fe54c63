"""Resources that the user states for ``predictor plan``, in place of measured ones."""

from __future__ import annotations

import re
from pathlib import Path

from predictor.errors import ConfigurationError
from predictor.pod.memory import PROCESSES
from predictor.pod.resources import Accelerator, Memory, PodResources, Volume
from predictor.quantity import format_bytes, parse_bytes
from predictor.sentences import quote

RESOURCES = ("gpus", "memory", "disk")
"""The names of what can be stated."""


def stated_resources(gpus: str | None, memory: str | None, disk: str | None) -> PodResources:
    """Return the stated resources; a resource that is not stated is absent.

    All memory of GPUs and all space on the volume count as free. Main memory is the container's
    limit, of which the process itself takes its part, as it does in the pod.

    Args:
        gpus: ``2x24GiB``, ``24GiB`` or a list of these with commas; None is no GPU.
        memory: The container's memory limit, such as ``32GiB``.
        disk: Space on the offload volume; None if blocks are read in place.

    Raises:
        ConfigurationError: An amount cannot be read, or the processes alone need more memory.
    """
    try:
        cards = tuple(size for part in (gpus or "").split(",") if part for size in _cards(part))
        limit = parse_bytes(memory or 0)
        space = None if disk is None else parse_bytes(disk)
    except ValueError as error:
        raise ConfigurationError(f"The stated resources cannot be read: {error}.") from None
    if memory is not None and limit <= PROCESSES:
        raise ConfigurationError(
            f"Of the stated memory, {format_bytes(limit)}, the predictor's own processes take "
            f"{format_bytes(PROCESSES)}; state more."
        )
    return PodResources(
        accelerators=tuple(
            Accelerator(index, "cuda", "stated", size, size) for index, size in enumerate(cards)
        ),
        memory=Memory(limit, max(0, limit - PROCESSES), "stated"),
        volume=None
        if space is None
        else Volume(Path("stated"), space, True, "stated", None, stated=True),
    )


def parse_alternative(text: str) -> dict[str, str]:
    """Return the resources that an alternative states, by name.

    Args:
        text: Such as ``gpus=2x24GiB,memory=64GiB``. A part without a name belongs to the one
            before it, so that ``gpus=24GiB,16GiB`` are two GPUs. ``none`` is no such resource.

    Raises:
        ConfigurationError: A name is not one of a resource, or comes twice.
    """
    amounts: dict[str, str] = {}
    last = ""
    for part in text.split(","):
        name, equals, amount = (word.strip() for word in part.partition("="))
        if not equals and last:
            amounts[last] += f",{name}"
            continue
        if name not in RESOURCES or not equals or name in amounts:
            raise ConfigurationError(
                f"{quote(part)} states no resource; write an alternative like "
                "gpus=2x24GiB,memory=64GiB,disk=200GiB, each name once."
            )
        amounts[name], last = amount, name
    return amounts


def _cards(part: str) -> list[int]:
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", part.strip())
    if match is None:
        raise ValueError(f"{part!r} is no GPU; write it like 2x24GiB")
    return [parse_bytes(match[2])] * int(match[1] or 1)
