"""Device maps as users write them: a strategy, one device, or devices by module name.

Accepts the device names of torch and Accelerate (``cuda:0``, ``xpu:0``, ``0``). An explicit map is
followed as it is written, or refused; for a strategy `assignment` decides.
"""

from __future__ import annotations

from predictor.errors import ConfigurationError, nearest
from predictor.placement.tiers import Assignment, Budgets, main_device
from predictor.placement.units import Footprint

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to share a model among several GPUs; ``auto`` is ``balanced``."""


def explicit_assignment(
    footprint: Footprint, device_map: str | dict[str, str], budgets: Budgets
) -> Assignment | None:
    """Return the assignment that a device map states; None for a strategy.

    Raises:
        ConfigurationError: The map names a device or a module that is not there, leaves a module
            out, or separates tied weights.
    """
    if isinstance(device_map, str) and device_map in STRATEGIES:
        return None
    devices = {"": device_map} if isinstance(device_map, str) else device_map
    return _assign(footprint, {key: _device(name) for key, name in devices.items()}, budgets)


def _device(name: str) -> str:
    plain = name.removeprefix("cuda:").removeprefix("xpu:")
    if name in ("cuda", "xpu"):
        return "0"
    if plain.isdigit() or plain in ("cpu", "disk"):
        return plain
    raise ConfigurationError(
        f"device_map names {name!r}, which is no strategy and no device; "
        + nearest(name, (*STRATEGIES, "cpu", "disk", "cuda"))
    )


def _assign(footprint: Footprint, devices: dict[str, str], budgets: Budgets) -> Assignment:
    for device in devices.values():
        if device not in budgets.by_device():
            raise ConfigurationError(
                f"device_map names GPU {device}, but this pod sees {len(budgets.gpus)} GPU(s)."
            )
    names = [name for unit in footprint.units for name in unit.names]
    for key in devices:
        if not any(_covers(key, name) for name in names):
            raise ConfigurationError(
                f"device_map names {key!r}, which is no module of {footprint.architecture} that "
                "can be placed apart; blocks are placed whole."
            )
    placed = [_device_of(unit.names, devices) for unit in footprint.units if unit.names]
    executes = main_device(tuple(placed))
    return tuple(placed if not footprint.draft_model else [executes, *placed])


def _covers(key: str, name: str) -> bool:
    return key == "" or name == key or name.startswith(f"{key}.")


def _device_of(names: tuple[str, ...], devices: dict[str, str]) -> str:
    """Return the device of the longest key that covers these names, which share weights."""
    matches = set()
    for name in names:
        keys = [key for key in devices if _covers(key, name)]
        if not keys:
            raise ConfigurationError(f"device_map leaves {name!r} out.")
        matches.add(devices[max(keys, key=len)])
    if len(matches) > 1:
        raise ConfigurationError(
            f"device_map puts {' and '.join(names)} on different devices, but they share weights."
        )
    return matches.pop()
