"""The output of a batch: a file to which one line at a time is appended.

A line is written by one call of the system at the end of the file. If that is cut short, by the end
of the process or of the space, the rest of a line is taken away before the next is written. So the
file has whole lines alone, and they say what is done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from array import array
from pathlib import Path
from typing import BinaryIO

from predictor.batch.input_file import InputLine
from predictor.batch.lines import is_answered, result_key
from predictor.batch.volume import volume_errors
from predictor.errors import ConfigurationError, LoadFailed

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_TRIALS = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class OutputHeld(LoadFailed):
    """Another process writes the output."""


class DoneLines:
    """The lines that have a result, with four bytes for each line up to the last of them.

    Attributes:
        answered: How many results are answers.
        failed: How many are errors.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.answered = self.failed = 0
        self._digests = array("I")

    def add(self, number: int, digest: str, *, is_ok: bool) -> None:
        """Note the result of a line."""
        if number > len(self._digests):
            self._digests.frombytes(bytes(4 * (2 * number - len(self._digests))))
        self._digests[number - 1] = _as_number(digest)
        self.answered += is_ok
        self.failed += not is_ok

    def has(self, number: int) -> bool:
        """Return whether a line is done, whatever its digest was."""
        return number <= len(self._digests) and self._digests[number - 1] != 0

    def is_of(self, number: int, digest: str) -> bool:
        """Return whether the digest of a line that is done is this one."""
        return self._digests[number - 1] == _as_number(digest)


class OutputFile:
    """A file of results that one process at a time appends to.

    Attributes:
        done: The lines that have a result.
        path: The file.
    """

    def __init__(self, path: Path, *, lock_seconds: float = 0.0) -> None:
        """Open a file, make it if there is none, and keep other processes out.

        Args:
            path: The file.
            lock_seconds: How long to wait for another process that has it.

        Raises:
            ConfigurationError: It cannot be written.
            OutputHeld: Another process has it.
            LoadFailed: Its volume is full or fails.
        """
        self.path = path
        self.done, self._size = DoneLines(), 0
        self._fd = _open_locked(path, lock_seconds)

    def read_done(self, *, most: int) -> None:
        """Read what is done, before the first line is appended.

        Args:
            most: The largest number that a line of the input can have.

        Raises:
            ConfigurationError: It is the output of something else.
            LoadFailed: The volume fails.
        """
        with volume_errors(f"The output {self.path} cannot be read"):
            with os.fdopen(os.dup(self._fd), "rb") as file:
                self.done, self._size = _read_done(file, self.path, most)
            os.ftruncate(self._fd, self._size)  # a last line that is torn

    def has(self, line: InputLine) -> bool:
        """Return whether a line of the input has a result.

        Raises:
            ConfigurationError: There is a result of a line of its number that is another line.
        """
        if not self.done.has(line.number):
            return False
        if not self.done.is_of(line.number, line.digest):
            raise ConfigurationError(
                f"{self.path} has a result of another line {line.number} than the input's; name "
                "another output, or take the file away."
            )
        return True

    def sync(self) -> None:
        """Write what the system still holds back.

        Raises:
            OSError: The volume fails.
        """
        os.fsync(self._fd)

    def close(self) -> None:
        """Write what the system still holds back, and close the file."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self.sync()
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.close(fd)

    def remove(self) -> None:
        """Take the file away; its lines are elsewhere."""
        self.path.unlink(missing_ok=True)

    def append(self, line: bytes) -> None:
        """Append a line, whole or not at all.

        Raises:
            LoadFailed: The volume is full or fails.
        """
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a signal, or the last free bytes
                written += os.write(self._fd, line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise LoadFailed(
                f"The output {self.path} cannot be written: {error.strerror}. Its lines are whole; "
                "the same command goes on behind them."
            ) from None
        self._size += len(line)


def _open_locked(path: Path, seconds: float) -> int:
    """Return the descriptor of a file that no other process has."""
    deadline, is_first = time.monotonic() + seconds, True
    while True:
        with volume_errors(f"The output {path} cannot be written"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if _is_locked(fd) and _is_at(fd, path):
                    return fd
            except BaseException:
                os.close(fd)
                raise
        os.close(fd)
        if time.monotonic() >= deadline:
            raise OutputHeld(f"Another process writes the output {path}; each shard needs its own.")
        if is_first:
            logger.info("Waiting for another process that writes %s", path)
        is_first = False
        time.sleep(_SECONDS_BETWEEN_TRIALS)


def _is_locked(fd: int) -> bool:
    """Return whether a file is locked now, or lies where there are no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Return whether an open file is still the one of its path."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _read_done(file: BinaryIO, path: Path, most: int) -> tuple[DoneLines, int]:
    """Return the lines that are done, and the bytes of the whole lines."""
    done, size = DoneLines(), 0
    file.seek(0)
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            break
        key = result_key(line)
        if key is None or key[0] > most:
            raise ConfigurationError(
                f"Line {number} of {path} is no result of this input; name another output, or take "
                "the file away."
            )
        done.add(*key, is_ok=is_answered(line))
        size += len(line)
    return done, size


def _as_number(digest: str) -> int:
    return int(digest, 16) or 1
