"""The output of a batch: a file to which one line at a time is appended.

A line is written by one call of the system at the end of the file. If that is cut short, by the end
of the process or of the space, the rest of a line is taken away before the next is written. So the
file has whole lines alone, and they say what is done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from array import array
from pathlib import Path
from typing import BinaryIO

from predictor.batch.input_file import InputLine
from predictor.batch.lines import result_key
from predictor.errors import ConfigurationError, LoadFailed

_PIECE = 64 * 1024
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class DoneLines:
    """The lines that have a result, with four bytes for each line up to the last of them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._digests = array("I")

    def add(self, number: int, digest: str) -> None:
        """Note the result of a line."""
        if number > len(self._digests):
            self._digests.frombytes(bytes(4 * (2 * number - len(self._digests))))
        self._digests[number - 1] = _as_number(digest)

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

    def __init__(self, path: Path, *, most: int) -> None:
        """Open a file, make it if there is none, and read what is done.

        Args:
            path: The file.
            most: The largest number that a line of the input can have.

        Raises:
            ConfigurationError: It cannot be written, another process has it, or it is the output of
                something else.
        """
        self.path = path
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"The output {path} cannot be written: {error.strerror}."
            ) from None
        self._fd = fd
        try:
            self._lock()
            with os.fdopen(os.dup(fd), "rb") as file:
                self.done, self._size = _read_done(file, path, most)
            os.ftruncate(fd, self._size)  # a last line that is torn
        except BaseException:
            os.close(fd)
            raise

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

    def close(self) -> None:
        """Write what the system still holds back, and close the file."""
        with contextlib.suppress(OSError):
            os.fsync(self._fd)
        os.close(self._fd)

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

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise ConfigurationError(
                    f"Another process writes the output {self.path}; each shard needs its own."
                ) from None


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
        done.add(*key)
        size += len(line)
    return done, size


def _as_number(digest: str) -> int:
    return int(digest, 16) or 1
