"""Locks on files, held alone: those of flock(2), which die with the process that holds them.

They hold on NFS too, where Linux makes byte-range locks of them.
"""

from __future__ import annotations

import fcntl
import logging

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
