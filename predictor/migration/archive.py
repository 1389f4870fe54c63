"""Opens what TorchServe was given: a .mar, a .tar.gz or a directory, told apart by content.

What an archive gives is `predictor.migration.members`'s to say; each format has a module.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.directory import open_directory
from predictor.migration.members import Archive, reading
from predictor.migration.names import Member, shown
from predictor.migration.tarred import GZIP, MAGIC, MAGIC_AT, open_tar
from predictor.migration.zipped import SIGNATURES, open_zip

__all__ = ["Archive", "Member", "open_archive"]


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Gives an archive that was checked as a whole; nothing of it was written anywhere.

    Raises:
        ArchiveError: It is missing, broken, no archive or not safe to unpack.
    """
    where = shown(path.name or str(path))
    with reading(where):
        mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        yield open_directory(path, where)
        return
    if not stat.S_ISREG(mode):  # opening a pipe would wait for somebody who writes
        raise ArchiveError(f"{where} is neither a file nor a directory.")
    with contextlib.ExitStack() as stack:
        with reading(where):
            file = stack.enter_context(open(path, "rb"))
        yield stack.enter_context(_by_content(file, where))


def _by_content(file: IO[bytes], where: str) -> AbstractContextManager[Archive]:
    """Returns the archive that a file's first bytes say it is, to be entered."""
    with reading(where):
        size = os.fstat(file.fileno()).st_size
        start = file.read(MAGIC_AT + len(MAGIC))
        file.seek(0)
    if not size:
        raise ArchiveError(f"{where} is empty.")
    if start.startswith(SIGNATURES):
        return open_zip(file, size, where)
    is_compressed = start.startswith(GZIP)
    if is_compressed or start[MAGIC_AT:] == MAGIC:
        return open_tar(file, where, is_compressed=is_compressed)
    raise ArchiveError(f"{where} is none of what TorchServe packs: .mar, .tar.gz or a directory.")
