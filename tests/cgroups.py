"""Real memory cgroups for tests, of version 1 or 2, made below the mount of the controller.

Where none can be made the test that asks is skipped, or fails if REQUIRE_ROOT_TESTS=1.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from predictor.pod.mounts import read_mounts
from tests.skips import skip_or_fail


@dataclass(frozen=True)
class Cgroup:
    """A control group with a memory limit.

    Use it by starting a program with `command`:

        with memory_cgroup(512 << 20) as group:
            subprocess.run(group.command([sys.executable, "-c", "..."]), check=True)
            assert group.oom_kills() == 0
    """

    folder: Path
    version: int

    def command(self, argv: Sequence[str]) -> list[str]:
        """Returns the command line that runs a program inside the group."""
        procs = str(self.folder / "cgroup.procs")
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', procs, *argv]

    def set_limit(self, limit: int) -> None:
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        (self.folder / name).write_text(str(limit))

    def usage(self) -> int:
        """Returns the bytes charged now, page cache among them."""
        return self._number("memory.usage_in_bytes" if self.version == 1 else "memory.current")

    def peak(self) -> int:
        """Returns the most bytes ever charged, page cache among them (v2: Linux 5.19 or later)."""
        return self._number("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")

    def failcnt(self) -> int:
        """Returns how often the limit was hit; page cache was then taken back, or a kill came."""
        if self.version == 1:
            return self._number("memory.failcnt")
        return self._field("memory.events", "max")

    def oom_kills(self) -> int:
        """Returns how many processes of the group were killed for memory."""
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        return self._field(file, "oom_kill")

    def _number(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def _field(self, name: str, field: str) -> int:
        lines = (self.folder / name).read_text().splitlines()
        return int(dict(line.split() for line in lines)[field])


@contextmanager
def memory_cgroup(limit: int, *, parent: Cgroup | None = None) -> Iterator[Cgroup]:
    """Yields a new group with a limit in bytes, below another if one is given, then removes it."""
    try:
        group = _make(limit, parent or _root())
    except OSError as error:
        skip_or_fail(f"no memory cgroup can be made here: {error}", "REQUIRE_ROOT_TESTS")
    try:
        yield group
    finally:
        _remove(group.folder)


def _root() -> Cgroup:
    mounts = read_mounts(Path("/proc"))
    for mount in mounts:
        if mount.filesystem == "cgroup" and "memory" in mount.options:
            return Cgroup(mount.point, 1)
    for mount in mounts:
        controllers = mount.point / "cgroup.controllers"
        if mount.filesystem == "cgroup2" and "memory" in controllers.read_text().split():
            return Cgroup(mount.point, 2)
    raise FileNotFoundError("no memory controller is mounted")


def _make(limit: int, parent: Cgroup) -> Cgroup:
    if parent.version == 2:
        (parent.folder / "cgroup.subtree_control").write_text("+memory")
    group = Cgroup(parent.folder / f"predictor-test-{uuid.uuid4().hex[:8]}", parent.version)
    group.folder.mkdir()
    try:
        group.set_limit(limit)
        swap = group.folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
    except OSError:
        _remove(group.folder)
        raise
    return group


def _remove(folder: Path) -> None:
    for _ in range(100):
        try:
            folder.rmdir()
        except OSError:  # a process of it is still being reaped
            time.sleep(0.05)
        else:
            return
    folder.rmdir()
