"""How many bytes the files below a folder take, counted within bounds.

For volumes whose file system cannot tell: a claim on NFS or a host's folder is a part of something
far larger.
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
    """What was counted.

    Attributes:
        used: Bytes on the disk, hard links once, other file systems left out.
        complete: Whether everything was seen.
    """

    used: int
    complete: bool


def count_usage(
    folder: Path, *, most_entries: int = MOST_ENTRIES, most_seconds: float = MOST_SECONDS
) -> Usage:
    """Returns what the files below a folder take; nothing for a folder that does not exist."""
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
    """Goes through the files of one file system and remembers whether some were hidden from it."""

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
        except FileNotFoundError:  # another replica cleans up behind itself
            return []
        except OSError:
            self.hidden = True
            return []

    def _stat(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        try:
            return entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
