"""Small files that are written whole or not at all, and what a killed process left of them."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

PARTIAL = ".partial"
"""The suffix of files that are not complete yet."""

_SECONDS_OF_A_WRITE = 3600
"""Seconds after which a small file that is not complete was left by a process that was killed."""


def write_atomically(file: Path, text: str) -> None:
    """Write a file that only its owner may read, so that others see the old or the new content.

    That holds after a loss of power, too.

    Raises:
        OSError: The volume cannot be written.
    """
    descriptor, partial = tempfile.mkstemp(PARTIAL, f".{file.name}-", file.parent)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(partial).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(partial).unlink(missing_ok=True)
        raise


def remove_old_partials(folder: Path, *patterns: str) -> None:
    """Remove files that processes were writing when they were killed, if they are an hour old.

    Args:
        folder: The folder.
        patterns: Patterns of the files' names.
    """
    for pattern in patterns:
        for file in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > _SECONDS_OF_A_WRITE:
                    file.unlink()
