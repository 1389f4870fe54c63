"""The result of one check, and what a check may look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from predictor.pod.accelerators import read_accelerators
from predictor.pod.memory import CGROUP_ROOT, PROC
from predictor.pod.own_pod import SERVICE_ACCOUNT
from predictor.pod.resources import Accelerator

State = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """What a check has measured.

    Attributes:
        name: What it is about, in a few words.
        state: ``"failure"`` keeps the server from starting or from being reached, ``"warning"``
            makes it slow or fragile, and ``"skipped"`` could not be measured.
        finding: What was measured, as a sentence.
        remedy: What to do; empty if nothing is to be done.
    """

    name: str
    state: State
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where checks look. Tests put others in their place.

    Attributes:
        environ: The environment.
        proc: The proc file system.
        cgroup_root: The mount point of control groups.
        shared_memory: The file system of shared memory.
        temporary: The folder for temporary files.
        service_account: The folder of the service account's token.
        api_host: URL of the API server; None is the cluster's own.
        accelerators: Returns the devices that torch sees.
        version: Returns the version of an installed package.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    proc: Path = PROC
    cgroup_root: Path = CGROUP_ROOT
    shared_memory: Path = Path("/dev/shm")  # noqa: S108 - it is looked at
    temporary: Path = Path("/tmp")  # noqa: S108 - it is looked at
    service_account: Path = SERVICE_ACCOUNT
    api_host: str | None = None
    accelerators: Callable[[], Sequence[Accelerator]] = read_accelerators
    version: Callable[[str], str] = version
