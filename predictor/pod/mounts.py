"""The mounts of this process, as ``/proc/self/mountinfo`` lists them.

Source of the format: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount.

    Attributes:
        root: The mounted folder of the file system. For a control group of version 1 in a container
            this is the container's own group, by its name on the host.
        point: The mount point.
        filesystem: Its type: ``ext4``, ``overlay``, ``cgroup2``...
        options: The options of the file system itself, such as the controllers of a cgroup mount.
    """

    root: str
    point: Path
    filesystem: str
    options: frozenset[str]


def read_mounts(proc: Path) -> tuple[Mount, ...]:
    """Return the mounts in the kernel's order; empty if there is no mountinfo."""
    try:
        text = (proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ()
    return tuple(_parse(line) for line in text.split("\n") if " - " in line)


def mount_of(folder: Path, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that a folder is on: the longest that matches, the last of equal ones.

    Args:
        folder: An absolute path without symbolic links.
        mounts: In the kernel's order; a later mount on the same point hides the earlier.
    """
    best: Mount | None = None
    for mount in mounts:
        deeper = best is None or len(mount.point.parts) >= len(best.point.parts)
        if deeper and folder.is_relative_to(mount.point):
            best = mount
    return best


def _parse(line: str) -> Mount:
    mounting, _, filesystem = line.partition(" - ")
    root, point = mounting.split(" ")[3:5]
    kind, _, rest = filesystem.partition(" ")
    return Mount(
        root=_unescape(root),
        point=Path(_unescape(point)),
        filesystem=kind,
        options=frozenset(rest.rpartition(" ")[2].split(",")),
    )


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
