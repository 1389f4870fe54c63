"""Count the bytes that the files below a folder take, within bounds of time and number.

This is for volumes whose file system does not report it: a claim on NFS or on a host's folder is a
part of a far larger file system.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOST_ENTRIES = 200_000
MOST_SECONDS = 10.0
"""An offload folder has a few thousand files; a start must not wait for a walk through millions."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The bytes that were counted.

    Attributes:
        used: Bytes on the disk. Hard links count once; other file systems do not count.
        complete: Whether every file was counted.
    """

    used: int
    complete: bool


def count_usage(
    folder: Path, *, most_entries: int = MOST_ENTRIES, most_seconds: float = MOST_SECONDS
) -> Usage:
    """Return the bytes of the files below a folder; 0 if the folder does not exist."""
    walk = _Walk()
    deadline = time.monotonic() + most_seconds
    used, inodes = 0, set()
    for count, stat in enumerate(walk.files(folder)):
        if count >= most_entries or time.monotonic() > deadline:
            return Usage(used, complete=False)
        if stat.st_ino not in inodes:
            used += stat.st_blocks * 512  # st_blocks is in units of 512 bytes everywhere
        if stat.st_nlink > 1:
            inodes.add(stat.st_ino)
    return Usage(used, complete=not walk.hidden)


class _Walk:
    """A walk through the files of one file system; `hidden` says whether some were not readable."""

    def __init__(self) -> None:
        self.hidden = False

    def files(self, folder: Path) -> Iterator[os.stat_result]:
        if not folder.is_dir():
            return
        device = folder.stat().st_dev
        pending = [str(folder)]
        while pending:
            for entry in self._entries(pending.pop()):
                stat = self._stat(entry)
                if stat is None or stat.st_dev != device:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                yield stat

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(path) as entries:
                return list(entries)
        except FileNotFoundError:  # another replica has removed it
            return []
        except OSError:
            self.hidden = True
            return []

    def _stat(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        try:
            return entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
