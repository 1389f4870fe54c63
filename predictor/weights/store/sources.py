"""The files of weights at one moment: names, sizes, times and inodes, or a commit on the hub.

An edit gives a file another time of change (ctime), which no program can set, and a copy or a
download has another inode. The device is left out: a network volume has another one in each pod. A
commit on the hub never changes, so its files are not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_SECOND = 10**9

_TICK = _SECOND // 50
"""Nanoseconds for which Linux may give every change of a file the same time: a tick, or two."""

_COARSE_TICK = 2 * _SECOND
"""The same of file systems that keep whole seconds."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """The properties of a file that an edit or a copy changes.

    Attributes:
        size: Bytes.
        modified: The time of the last modification, in nanoseconds.
        changed: The time of the last change of content or metadata (ctime), in nanoseconds.
        inode: The inode number.
    """

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> Self:
        """Return a file's present stamp.

        Raises:
            OSError: There is no such file.
        """
        stat = file.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    @property
    def key(self) -> str:
        """The stamp as a key of a JSON object."""
        return f"{self.size}-{self.modified}-{self.changed}-{self.inode}"

    def is_settled(self, at: int) -> bool:
        """Return whether an edit after a moment gives the file another stamp.

        Two edits within one tick of the file system's clock have the same time.

        Args:
            at: The moment at which the stamp was read, in nanoseconds.
        """
        tick = _TICK if self.changed % _SECOND else _COARSE_TICK
        return at - self.changed >= tick


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a checkpoint's weights at one moment.

    Attributes:
        commit: The commit on the hub; None for local files.
        stamps: The stamp of each local file, by name.
        read_at: The moment at which the stamps were read, in nanoseconds.
    """

    commit: str | None
    stamps: Mapping[str, Stamp]
    read_at: int

    @classmethod
    def of(cls, files: Iterable[Path], commit: str | None) -> Self:
        """Return the present sources of a commit, or of local files.

        Raises:
            OSError: A file is missing.
        """
        at = time.time_ns()
        stamps = {} if commit is not None else {file.name: Stamp.of(file) for file in files}
        return cls(commit, stamps, at)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return sources from `as_json`.

        Raises:
            TypeError, KeyError, AttributeError: The value is no such object.
        """
        stamps = {name: Stamp(*stamp) for name, stamp in value["stamps"].items()}
        return cls(value["commit"], stamps, value["read_at"])

    def as_json(self) -> dict[str, Any]:
        """Return the sources as a JSON object."""
        stamps = {
            name: [stamp.size, stamp.modified, stamp.changed, stamp.inode]
            for name, stamp in self.stamps.items()
        }
        return {"commit": self.commit, "stamps": stamps, "read_at": self.read_at}

    def are_still(self, later: Sources) -> bool:
        """Return whether these files have not changed until a later moment.

        False means that they may have changed.
        """
        return (
            self.commit == later.commit
            and self.stamps == later.stamps
            and all(stamp.is_settled(self.read_at) for stamp in self.stamps.values())
        )

    def may_equal(self, other: Sources) -> bool:
        """Return whether other files may have the same content, by their names and sizes."""
        sizes = ({n: s.size for n, s in each.stamps.items()} for each in (self, other))
        return self.commit == other.commit and next(sizes) == next(sizes)


NO_SOURCES = Sources(None, {}, 0)
"""The sources of weights that lie in no files."""
