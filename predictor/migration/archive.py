"""Opens what TorchServe was given: a .mar, a .tar.gz or a directory, told apart by content.

What an archive gives is `predictor.migration.members`'s to say; each format has a module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from predictor.migration.members import Archive, Member

__all__ = ["Archive", "Member", "open_archive"]


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Gives an archive that was checked as a whole; nothing of it was written anywhere.

    Raises:
        ArchiveError: It is missing, broken, no archive or not safe to unpack.
    """
    raise NotImplementedError
    yield
