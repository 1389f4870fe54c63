"""Locks on files, exclusive or shared: those of flock(2), which end with the process.

They work on NFS too, where Linux turns them into byte-range locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

OWNER_ONLY = 0o600
"""The mode of files that exist to be locked: whoever can open one can block the others."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file if no other process holds a lock on it, and return whether it did."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int, *, of: object) -> None:
    """Lock an open file, and wait for the process that holds the lock.

    Args:
        descriptor: The file.
        of: The object that the lock protects, for the log.
    """
    if not try_lock(descriptor):
        logger.info("Waiting for another process that writes %s", of)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


class SharedLock:
    """A shared lock on a file, held by every process that uses something, until `close`.

    Attributes:
        descriptor: The open file.
    """

    def __init__(self, file: Path) -> None:
        """Open the file, and lock nothing yet.

        Raises:
            OSError: The file cannot be written.
        """
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, OWNER_ONLY)

    def acquire(self) -> None:
        """Acquire the shared lock, and wait for the process that holds an exclusive one."""
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def try_exclusive(self) -> Iterator[bool]:
        """Yield whether the lock is exclusive meanwhile; acquire the shared lock afterwards."""
        is_exclusive = try_lock(self.descriptor)
        try:
            yield is_exclusive
        finally:
            # The attempt releases the shared lock, also when it fails (flock(2)).
            self.acquire()

    def close(self) -> None:
        """Release the lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
