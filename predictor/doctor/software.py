"""Checks of installed libraries and of the GPU's driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError

from predictor.doctor.check import Check, Surroundings
from predictor.errors import ConfigurationError
from predictor.private.versions import Library

_MODULES = {
    "TORCH": "predictor.private.torch",
    "TRANSFORMERS": "predictor.private.transformers",
    "ACCELERATE": "predictor.private.accelerate",
    "KSERVE": "predictor.protocol.sdk",
    "UVICORN": "predictor.protocol.http.lingering_protocol",
}
"""The modules that use private interfaces of a library, and check them when they are imported."""


def check_libraries(around: Surroundings) -> Iterator[Check]:
    """Check the versions of the libraries whose private interfaces are used."""
    for constant, module in _MODULES.items():
        try:
            library: Library = getattr(import_module(module), constant)
            yield _check_version(library, around)
        except (ConfigurationError, ImportError) as error:
            name = constant.lower()
            remedy = "Install the versions of constraints.txt, or use the image."
            yield Check(name, "failure", str(error), remedy)


def _check_version(library: Library, around: Surroundings) -> Check:
    try:
        installed = around.version(library.name)
    except PackageNotFoundError:
        return Check(
            library.name, "failure", "It is not installed.", f"Install {library.requirement}."
        )
    finding = f"Version {installed} is installed."
    if _parts(library.oldest) <= _parts(installed) < _parts(library.below):
        return Check(library.name, "ok", finding)
    remedy = f"Install {library.requirement}: only these versions are tested."
    return Check(library.name, "warning", finding, remedy)


def check_driver(around: Surroundings) -> Check:
    """Check that torch is built for the driver of the node."""
    import torch

    built_for = torch.version.cuda or torch.version.hip
    driver = _driver(around)
    if driver is None:
        return Check("driver", "skipped", "No NVIDIA driver is visible in this container.")
    if built_for is None:
        finding = f"The node has NVIDIA's driver {driver}, and torch is built for processors only."
        return Check("driver", "failure", finding, "Use the image that is built for CUDA.")
    return Check("driver", "ok", f"NVIDIA's driver is {driver}, torch is built for {built_for}.")


def _driver(around: Surroundings) -> str | None:
    try:
        text = (around.proc / "driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return "of an unknown version" if match is None else match[1]


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
