"""What an archive gives, whatever its format: members by path, each read or copied in chunks.

Nothing here trusts what an archive declares: a member is read up to its declared size and not a
byte further, and one that ends before it is an error. What the names may be is
`predictor.migration.names`'s to say.
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
from predictor.migration.names import Member, shown
from predictor.quantity import format_bytes

CHUNK = 1024**2
"""Bytes read at once: enough for a disk's full speed, little beside what Python itself holds."""

MOST_READ = 1024**2
"""Bytes of a member that may be read whole: settings and manifests have a few KiB."""

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
    RuntimeError,  # NotImplementedError and RecursionError too
)
"""What zipfile, tarfile and gzip raise on bytes that somebody has made or a disk has spoilt."""


class Archive(ABC):
    """An archive that was checked as a whole before any of it is given out.

    Attributes:
        where: The archive's name, for sentences.
        members: Its files by path, in the order in which reading them all is cheapest.
    """

    def __init__(self, where: str, members: Mapping[str, Member]) -> None:
        self.where = where
        self.members = members

    @abstractmethod
    def inner(self, path: str) -> AbstractContextManager[Archive]:
        """Opens the zip archive that a member is, without writing it anywhere.

        Raises:
            ArchiveError: It is none, is broken or not safe, or lies in an inner archive itself.
        """

    @abstractmethod
    def _open(self, path: str) -> IO[bytes]:
        """Opens a member; may raise whatever the format's library does."""

    def read(self, path: str) -> bytes:
        """Returns a small member.

        Raises:
            ArchiveError: There is none of this path, it is over `MOST_READ`, or it is broken.
        """
        size = self.member(path).size
        if size > MOST_READ:
            most = format_bytes(MOST_READ)
            raise self.refusal(path, f"has {format_bytes(size)}, which is over {most}")
        with self._contents(path) as chunks:
            return b"".join(chunks)

    def copy(self, path: str, into: Path, told: Callable[[int], None]) -> None:
        """Writes a member to a new file, or links it there; a file cut short is removed again.

        Args:
            path: The member.
            into: The new file; its folder must exist.
            told: Is told after every chunk how many bytes were added.

        Raises:
            ArchiveError: The member is not there or is broken.
            OSError: The new file cannot be written, or exists.
        """
        with self._contents(path) as chunks, _new_file(into) as file:
            for chunk in chunks:
                file.write(chunk)
                told(len(chunk))

    def space_for(self, path: str, folder: Path) -> int:
        """Returns the bytes that copying a member into a folder takes there: 0 for a link."""
        del folder  # what is unpacked takes its size anywhere
        return self.member(path).size

    def member(self, path: str) -> Member:
        """Returns a member by its path.

        Raises:
            ArchiveError: There is none.
        """
        try:
            return self.members[path]
        except KeyError:
            raise ArchiveError(f"{self.where} holds no {shown(path)}.") from None

    def refusal(self, path: str, what: str) -> ArchiveError:
        """Returns the error that says what is wrong with a member."""
        return ArchiveError(f"{self.named(path)} {what}.")

    def named(self, path: str) -> str:
        """Returns how a member is called in sentences."""
        return f"{shown(path)} in {self.where}"

    @contextlib.contextmanager
    def _contents(self, path: str) -> Iterator[Iterator[bytes]]:
        """Gives the chunks of a member, which is open when they are asked for."""
        size = self.member(path).size
        with self._opened(path) as stream:
            yield _chunks(stream, size, self.named(path))

    def _opened(self, path: str) -> IO[bytes]:
        self.member(path)
        with reading(self.named(path)):
            return self._open(path)


def _chunks(stream: IO[bytes], size: int, what: str) -> Iterator[bytes]:
    """Gives exactly as many bytes as were declared; the last read lets a checksum be compared."""
    left = size
    while left:
        with reading(what):
            chunk = stream.read(min(CHUNK, left))
        if not chunk:
            raise ArchiveError(f"{what} is cut short: {left} of its {size} bytes are missing.")
        left -= len(chunk)
        yield chunk
    with reading(what):
        rest = stream.read(1)
    if rest:
        raise ArchiveError(f"{what} goes on after the {size} bytes that it is said to have.")


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
def reading(what: str) -> Iterator[None]:
    """Makes what a library raises on broken bytes an `ArchiveError` that names what was read."""
    try:
        yield
    except _BROKEN as error:
        raise ArchiveError(f"{what} cannot be read: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    """Returns what an error says, without the path that an `OSError` repeats."""
    if isinstance(error, EOFError):
        return "it is cut short"
    said = error.strerror if isinstance(error, OSError) else None
    return said or reason_of(error, most=110).rstrip(".")
