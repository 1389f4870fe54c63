"""The interface of an archive, whatever its format: members by path, each read in chunks.

An archive's declarations are not trusted. A member is read up to its declared size and not a byte
further; one that ends earlier is an error. `predictor.migration.listing` checks the names.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from predictor.errors import ArchiveError, reason_of
from predictor.migration.display import quote_path
from predictor.migration.listing import Member
from predictor.quantity import format_bytes

CHUNK = 1024**2
"""Bytes read at once: enough for a disk's full speed, and little beside Python's own memory."""

MAX_WHOLE_READ = 1024**2
"""Bytes of a member that may be read whole. Settings and manifests have a few KiB."""

_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,  # and its subclasses NotImplementedError and RecursionError
)
"""The errors of zipfile, tarfile and gzip on forged or corrupt bytes."""


class Archive(ABC):
    """An archive that was checked as a whole before any member is read.

    Attributes:
        name: The archive's name, for error sentences.
        members: Its files by path, in the order in which reading all of them is cheapest.
    """

    def __init__(self, name: str, members: Mapping[str, Member]) -> None:
        self.name = name
        self.members = members

    @abstractmethod
    def inner(self, path: str) -> AbstractContextManager[Archive]:
        """Open a member that is a zip archive, without writing it anywhere.

        Raises:
            ArchiveError: The member is no zip archive, is broken or not safe, or lies in an inner
                archive itself.
        """

    @abstractmethod
    def _open(self, path: str) -> IO[bytes]:
        """Open a member. May raise any of the format library's errors."""

    def read(self, path: str) -> bytes:
        """Return the content of a small member.

        Raises:
            ArchiveError: There is no such member, it is over `MAX_WHOLE_READ`, or it is broken.
        """
        size = self.member(path).size
        if size > MAX_WHOLE_READ:
            most = format_bytes(MAX_WHOLE_READ)
            raise self.refusal(path, f"has {format_bytes(size)}, which is over {most}")
        with self._contents(path) as chunks:
            return b"".join(chunks)

    def copy(self, path: str, into: Path, on_progress: Callable[[int], None]) -> None:
        """Copy a member to a new file, or link it. If that fails, the new file is removed.

        Args:
            path: The member.
            into: The new file, in an existing folder.
            on_progress: Called after every chunk with the number of bytes added.

        Raises:
            ArchiveError: There is no such member, or it is broken.
            OSError: The new file cannot be written, or exists.
        """
        with self._contents(path) as chunks, _new_file(into) as file:
            for chunk in chunks:
                file.write(chunk)
                on_progress(len(chunk))

    def space_for(self, path: str, folder: Path) -> int:
        """Return the bytes that a copy of a member takes in a folder: 0 for a link."""
        del folder  # an unpacked member takes its size in any folder
        return self.member(path).size

    def member(self, path: str) -> Member:
        """Return a member by its path.

        Raises:
            ArchiveError: There is no such member.
        """
        try:
            return self.members[path]
        except KeyError:
            raise ArchiveError(f"{self.name} holds no {quote_path(path)}.") from None

    def refusal(self, path: str, problem: str) -> ArchiveError:
        """Return the error for a member, given the sentence's predicate."""
        return ArchiveError(f"{self.label(path)} {problem}.")

    def label(self, path: str) -> str:
        """Return a member's name for error sentences."""
        return f"{quote_path(path)} in {self.name}"

    @contextlib.contextmanager
    def _contents(self, path: str) -> Iterator[Iterator[bytes]]:
        """Give an iterator over a member's chunks, with the member open."""
        size = self.member(path).size
        with self._opened(path) as stream:
            yield _chunks(stream, size, self.label(path))

    def _opened(self, path: str) -> IO[bytes]:
        self.member(path)
        with archive_errors(self.label(path)):
            return self._open(path)


def _chunks(stream: IO[bytes], size: int, label: str) -> Iterator[bytes]:
    """Yield exactly the declared bytes; the last read lets the library compare its checksum."""
    left = size
    while left:
        with archive_errors(label):
            chunk = stream.read(min(CHUNK, left))
        if not chunk:
            raise ArchiveError(f"{label} is cut short: {left} of its {size} bytes are missing.")
        left -= len(chunk)
        yield chunk
    with archive_errors(label):
        excess = stream.read(1)
    if excess:
        raise ArchiveError(f"{label} goes on after the {size} bytes that it is said to have.")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def archive_errors(label: str) -> Iterator[None]:
    """Translate a library's errors on broken bytes into an `ArchiveError`.

    Args:
        label: The archive or member being read.
    """
    try:
        yield
    except _BROKEN as error:
        raise ArchiveError(f"{label} cannot be read: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    """Return an error's text, without the path that an `OSError` repeats."""
    if isinstance(error, EOFError):
        return "it is cut short"
    text = error.strerror if isinstance(error, OSError) else None
    return text or reason_of(error, most=110).rstrip(".")
