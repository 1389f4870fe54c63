"""Real file systems for tests: small ones, in memory, read-only. They need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def needs_root(test: Any) -> Any:
    """Skips where nothing can be mounted, unless REQUIRE_ROOT_TESTS=1 says that it can."""
    skip = os.geteuid() != 0 and os.environ.get("REQUIRE_ROOT_TESTS") != "1"
    return pytest.mark.skipif(skip, reason="mounting needs root")(test)


@contextmanager
def small_volume(folder: Path, size: int) -> Iterator[Path]:
    """Gives a loop-mounted ext4 of so many bytes; skips where loop devices cannot be had."""
    image, place = folder / "volume.img", folder / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no loop device can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def tmpfs(place: Path) -> Iterator[Path]:
    """Gives a file system in memory."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Makes a folder read-only, for root too."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
