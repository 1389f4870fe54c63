"""Cgroups, of version 1 or 2: of memory for a measured process, of processors for its clients."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from measuring import CannotMeasure

_MOUNTS = Path("/proc/self/mounts")
_PERIOD_US = 20_000
_SECONDS_BETWEEN_SAMPLES = 0.02

_Group = TypeVar("_Group")


def command_in(folder: Path, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs a program in the group of a folder."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(folder / "cgroup.procs"), *argv]


class MemoryGroup:
    """A cgroup with a memory limit, and its statistics."""

    def __init__(self, folder: Path, version: int) -> None:
        """Wrap a folder of the cgroup file system. Use `memory_group` to make one."""
        self.folder = folder
        self._version = version
        self.anonymous_peak = 0
        """Most bytes of anonymous memory seen by `sample`."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a program in this group."""
        return command_in(self.folder, argv)

    def limit(self, limit: int) -> None:
        """Set the limit in bytes, and forbid swapping."""
        name = "memory.limit_in_bytes" if self._version == 1 else "memory.max"
        (self.folder / name).write_text(str(limit))
        swap = self.folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def sample(self) -> None:
        """Sample the group's current anonymous memory."""
        key = "total_rss" if self._version == 1 else "anon"
        self.anonymous_peak = max(self.anonymous_peak, self._field("memory.stat", key))

    def peak(self) -> int:
        """Return the most bytes ever charged, including page cache."""
        name = "memory.max_usage_in_bytes" if self._version == 1 else "memory.peak"
        return int((self.folder / name).read_text())

    def oom_kills(self) -> int:
        """Return the number of processes that the OOM killer ended."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        return self._field(name, "oom_kill")

    def _field(self, name: str, key: str) -> int:
        lines = (self.folder / name).read_text().splitlines()
        return int(dict(line.split() for line in lines).get(key, 0))


@contextmanager
def memory_group(limit: int, *, mounts: Path = _MOUNTS) -> Iterator[MemoryGroup]:
    """Yield a new group with a limit in bytes, and removes it.

    Raises:
        CannotMeasure: No group can be made here.
    """
    root, version = _controller("memory", mounts)
    group = MemoryGroup(root / _new_name(), version)
    try:
        group.folder.mkdir()
    except OSError as error:
        raise CannotMeasure(
            f"No memory cgroup can be made in {root} ({error.strerror}); this benchmark needs root."
        ) from None
    try:
        group.limit(limit)
        yield group
    finally:
        _remove(group.folder)


@contextmanager
def processor_group(share: float, *, mounts: Path = _MOUNTS) -> Iterator[Path]:
    """Yield a new group whose processes get a share of one processor, and remove it.

    Args:
        share: Seconds of processor time in a second.
        mounts: Lists cgroup mounts.

    Raises:
        CannotMeasure: No group can be made here.
    """
    root, version = _controller("cpu", mounts)
    folder = root / _new_name()
    quota = round(share * _PERIOD_US)
    try:
        folder.mkdir()
    except OSError as error:
        raise CannotMeasure(f"No cgroup can be made in {root} ({error.strerror}).") from None
    try:
        if version == 1:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        yield folder
    finally:
        _remove(folder)


@contextmanager
def if_allowed(group: AbstractContextManager[_Group], otherwise: str) -> Iterator[_Group | None]:
    """Yield a group, or None after printing a sentence and the reason if none can be made here."""
    with ExitStack() as stack:
        made = None
        try:
            made = stack.enter_context(group)
        except CannotMeasure as error:
            print(f"{otherwise}: {error}", file=sys.stderr)
        yield made


@contextmanager
def sampled(group: MemoryGroup) -> Iterator[None]:
    """Sample a group's memory within the block, and forget earlier samples."""
    group.anonymous_peak = 0
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_SAMPLES):
            group.sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _new_name() -> str:
    return f"predictor-benchmark-{uuid.uuid4().hex[:8]}"


def _controller(name: str, mounts: Path) -> tuple[Path, int]:
    """Return a controller's mount point and version."""
    lines = [line.split() for line in mounts.read_text().splitlines()]
    for _, point, kind, options, *_ in lines:
        if kind == "cgroup" and name in options.split(","):
            return Path(point), 1
    for _, point, kind, *_ in lines:
        controllers = Path(point) / "cgroup.controllers"
        if kind == "cgroup2" and name in controllers.read_text().split():
            (Path(point) / "cgroup.subtree_control").write_text(f"+{name}")
            return Path(point), 2
    raise CannotMeasure(f"No {name} controller is mounted here; this benchmark needs cgroups.")


def _remove(folder: Path) -> None:
    """Remove a group, which stays busy for a moment after its last process."""
    deadline = time.monotonic() + 10
    while True:
        try:
            os.rmdir(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
