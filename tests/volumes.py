"""Real file systems for tests: small ones, in memory, read-only. They need root.

Where nothing can be mounted the test that asks is skipped, or fails if REQUIRE_ROOT_TESTS=1.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.skips import skip_or_fail


@contextmanager
def small_volume(folder: Path, size: int) -> Iterator[Path]:
    """Gives a loop-mounted ext4 of so many bytes; skips where loop devices cannot be had."""
    image, place = folder / "volume.img", folder / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    reason = _mount("-o", "loop", str(image), str(place))
    if reason:
        pytest.skip(f"no loop device can be mounted here: {reason}")
    with _mounted(place):
        yield place


@contextmanager
def tmpfs(place: Path, size: str = "16m") -> Iterator[Path]:
    """Gives a file system in memory; the folder is made if need be."""
    place.mkdir(exist_ok=True)
    _mount_or_skip("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    with _mounted(place):
        yield place


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Makes a folder read-only, for root too."""
    _mount_or_skip("--bind", str(place), str(place))
    with _mounted(place):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        yield


def cut_store_short(folder: Path) -> None:
    """Takes all blocks but a piece of the first from the one offload store of a folder."""
    (store,) = folder.glob("*.store")
    with store.open("r+b") as file:
        file.truncate(8192)


def _mount(*arguments: str) -> str:
    """Mounts; returns why that failed, and nothing where it did not."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    return (done.stderr.strip() or "mount failed") if done.returncode else ""


def _mount_or_skip(*arguments: str) -> None:
    reason = _mount(*arguments)
    if reason:
        skip_or_fail(f"mounting is not allowed here: {reason}", "REQUIRE_ROOT_TESTS")


@contextmanager
def _mounted(place: Path) -> Iterator[None]:
    """Takes the mount away at the end, though files of it may be open."""
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
