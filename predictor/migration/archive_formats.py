"""Open a TorchServe archive, a .mar, a .tar.gz or a directory, recognised by its content."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.archive import Archive, archive_errors
from predictor.migration.directory_archive import open_directory
from predictor.migration.display import quote_path
from predictor.migration.tar_archive import GZIP, MAGIC, MAGIC_OFFSET, open_tar
from predictor.migration.zip_archive import SIGNATURES, open_zip


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive that was checked as a whole. Nothing is written.

    Raises:
        ArchiveError: It is missing, broken, no archive or not safe to unpack.
    """
    name = quote_path(path.name or str(path))
    with archive_errors(name):
        mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        yield open_directory(path, name)
        return
    if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
        raise ArchiveError(f"{name} is neither a file nor a directory.")
    with contextlib.ExitStack() as stack:
        with archive_errors(name):
            file = stack.enter_context(open(path, "rb"))
        yield stack.enter_context(_open_by_content(file, name))


def _open_by_content(file: IO[bytes], name: str) -> AbstractContextManager[Archive]:
    """Return the archive of the format that the file's first bytes show; the caller enters it."""
    with archive_errors(name):
        size = os.fstat(file.fileno()).st_size
        start = file.read(MAGIC_OFFSET + len(MAGIC))
        file.seek(0)
    if not size:
        raise ArchiveError(f"{name} is empty.")
    if start.startswith(SIGNATURES):
        return open_zip(file, size, name)
    is_compressed = start.startswith(GZIP)
    if is_compressed or start[MAGIC_OFFSET:] == MAGIC:
        return open_tar(file, name, is_compressed=is_compressed)
    raise ArchiveError(f"{name} is none of what TorchServe packs: .mar, .tar.gz or a directory.")
