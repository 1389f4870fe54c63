"""Locks on files, held alone or shared: those of flock(2), which die with who holds them.

They hold on NFS too, where Linux makes byte-range locks of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


def try_lock(descriptor: int) -> bool:
    """Returns whether an open file could be locked now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, *, of: object) -> None:
    """Locks an open file, and waits for whoever holds it.

    Args:
        descriptor: The file.
        of: What the lock is of, for the log.
    """
    if not try_lock(descriptor):
        logger.info("Waiting for another process that writes %s", of)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


class Share:
    """A file that is locked by all who use something, until `close`.

    Attributes:
        descriptor: The open file.
    """

    def __init__(self, file: Path) -> None:
        """Opens the file, and locks nothing yet.

        Raises:
            OSError: It cannot be written.
        """
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self) -> None:
        """Shares the lock, and waits for whoever has it alone."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Gives whether nobody else has a share, who is kept out meanwhile; then takes one."""
        is_alone = try_lock(self.descriptor)
        try:
            yield is_alone
        finally:
            self.take()  # a share is given up for the try, and lost where that fails (flock(2))

    def close(self) -> None:
        """Gives the share up."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
