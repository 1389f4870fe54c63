"""The memory and CPU limits of this process's control groups, versions 1 and 2.

Supports the layouts in use: version 2 alone, version 1, the hybrid of both (a ``0::`` line without
a memory controller), and version 1 in a container. There ``/proc/self/cgroup`` names the group by
its path on the host, which does not exist below the container's mount. Source: the kernel's
``admin-guide/cgroup-v1/memory.rst`` and ``cgroup-v2.rst``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from predictor.pod.mounts import Mount, mount_of, read_mounts

UNLIMITED = 2**62
"""Bytes from which a limit means no limit. Version 1 writes 2**63 less one page, of any size."""


@dataclass(frozen=True, slots=True)
class Group:
    """One control group with a memory limit.

    Attributes:
        limit: Bytes that the group's processes may hold together.
        used: Bytes of them that the kernel cannot reclaim.
        source: The file that states the limit, for logs: ``"cgroup v2 memory.max"``.
    """

    limit: int
    used: int
    source: str

    @property
    def headroom(self) -> int:
        """Bytes that can still be taken in this group."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """The mount of a controller, and this process's group below it."""

    version: int
    mount: Path
    root: str
    path: str


def limited_groups(*, cgroup_root: Path, proc: Path) -> tuple[Group, ...]:
    """Return this process's group and those above it that have a limit, innermost first.

    Args:
        cgroup_root: The mount point of control groups if ``/proc/self/mountinfo`` lists none.
        proc: The proc file system.
    """
    hierarchy = _hierarchy("memory", cgroup_root, proc)
    read = _read_v1 if hierarchy.version == 1 else _read_v2
    groups = (read(folder) for folder in _levels(hierarchy))
    return tuple(group for group in groups if group is not None)


def processor_quota(*, cgroup_root: Path, proc: Path) -> float | None:
    """Return the number of processors whose time this process may use; None without a limit.

    Args:
        cgroup_root: The mount point of control groups if ``/proc/self/mountinfo`` lists none.
        proc: The proc file system.
    """
    hierarchy = _hierarchy("cpu", cgroup_root, proc)
    read = _quota_v1 if hierarchy.version == 1 else _quota_v2
    quotas = [quota for folder in _levels(hierarchy) if (quota := read(folder)) is not None]
    return min(quotas, default=None)


def _quota_v1(folder: Path) -> float | None:
    quota = _number(folder / "cpu.cfs_quota_us")  # -1 means none
    period = _number(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None or quota <= 0 else quota / period


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "max").strip().partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _hierarchy(controller: str, cgroup_root: Path, proc: Path) -> _Hierarchy:
    # A controller is in one hierarchy only. A line that names it means version 1, even if there is
    # a `0::` line too.
    paths = _memberships(proc)
    mounts = read_mounts(proc)
    if controller in paths or (not paths and (cgroup_root / controller).is_dir()):
        candidates = [m for m in mounts if m.filesystem == "cgroup" and controller in m.options]
        mount = _visible(candidates, mounts) or _default(cgroup_root / controller)
        return _Hierarchy(1, mount.point, mount.root, paths.get(controller, "/"))
    candidates = [m for m in mounts if m.filesystem == "cgroup2"]
    mount = _visible(candidates, mounts) or _default(cgroup_root)
    return _Hierarchy(2, mount.point, mount.root, paths.get("", "/"))


def _visible(candidates: Sequence[Mount], mounts: Sequence[Mount]) -> Mount | None:
    """Return the first of some mounts that no other mount hides."""
    for mount in candidates:
        if mount_of(mount.point, mounts) is mount and mount.point.is_dir():
            return mount
    return None


def _default(point: Path) -> Mount:
    return Mount(root="/", point=point, filesystem="", options=frozenset())


def _memberships(proc: Path) -> dict[str, str]:
    """Return the process's group for each controller; version 2's under the empty name."""
    groups = {}
    for line in (_read(proc / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _levels(hierarchy: _Hierarchy) -> Iterator[Path]:
    folder = _own_folder(hierarchy)
    while folder != hierarchy.mount:
        yield folder
        folder = folder.parent
    yield folder


def _own_folder(hierarchy: _Hierarchy) -> Path:
    """Return the folder of this process's group, or the closest that the mount shows."""
    for candidate in _candidates(PurePosixPath(hierarchy.path), PurePosixPath(hierarchy.root)):
        folder = hierarchy.mount / candidate
        if ".." not in candidate.parts and folder.is_dir():
            return folder
    return hierarchy.mount


def _candidates(path: PurePosixPath, root: PurePosixPath) -> Iterator[PurePosixPath]:
    """Yield the possible paths of a group below the mount, the likeliest first.

    These are its path below the mounted group, its whole path, then the tails of its path, longest
    first (the mount shows a group within the host's path), then the heads of it.
    """
    parts = path.relative_to("/").parts if path.is_absolute() else path.parts
    if path.is_relative_to(root):
        yield path.relative_to(root)
    for start in range(len(parts)):
        yield PurePosixPath(*parts[start:])
    for end in range(len(parts) - 1, 0, -1):
        yield PurePosixPath(*parts[:end])


def _read_v1(folder: Path) -> Group | None:
    own = _number(folder / "memory.limit_in_bytes")
    usage = _number(folder / "memory.usage_in_bytes")
    if own is None or usage is None:
        return None
    stat = _stat(folder)
    # The hierarchical limit includes ancestors that a container's mount does not show.
    limit = min(own, stat.get("hierarchical_memory_limit", own))
    if limit >= UNLIMITED:
        return None
    cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    return Group(limit, max(0, usage - cache), "cgroup v1 memory.limit_in_bytes")


def _read_v2(folder: Path) -> Group | None:
    # Above memory.high no process is killed, but every allocation is throttled: also a limit.
    limits = {name: _number(folder / name) for name in ("memory.max", "memory.high")}
    usage = _number(folder / "memory.current")
    stated = {name: limit for name, limit in limits.items() if limit is not None}
    if usage is None or not stated:
        return None
    name = min(stated, key=stated.__getitem__)
    stat = _stat(folder)
    # The memory that the kernel can reclaim. Pages of tmpfs and shared memory count as `file` but
    # are on the anonymous lists (they could only go to swap), so they are rightly not included.
    cache = sum(stat.get(key, 0) for key in ("inactive_file", "active_file", "slab_reclaimable"))
    return Group(stated[name], max(0, usage - cache), f"cgroup v2 {name}")


def _stat(folder: Path) -> dict[str, int]:
    lines = (_read(folder / "memory.stat") or "").splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def _number(file: Path) -> int | None:
    text = (_read(file) or "max").strip()
    return None if text == "max" else int(text)


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
