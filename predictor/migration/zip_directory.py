"""A zip archive's central directory, measured before `zipfile` makes an object of each entry.

`zipfile` accepts a zip archive with bytes before or after it. Two programs may then see different
archives in one file. Here the archive is the whole file or it is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.listing import MAX_MEMBERS, too_many
from predictor.migration.seekable import SeekableStream

_END = struct.Struct("<4s8x2LH")
"""End of central directory: signature, the directory's size and offset, the comment's length."""

_END_64 = struct.Struct("<4s36x2Q")
_LOCATOR = struct.Struct("<4s4xQ4x")
"""Their Zip64 forms (APPNOTE 4.3.14 and 4.3.15), of the length that `zipfile` expects."""

_ENTRY_BYTES, _LENGTHS_OFFSET = 46, 28
_LENGTHS = struct.Struct("<3H")
"""An entry's fixed part, and the lengths of its name, extra field and comment in it."""

_MAX_COMMENT = 65535

_MAX_BYTES = 32 * 1024**2
"""Bytes of a directory: 335 for each of the most members."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The position of a central directory.

    Attributes:
        start: Its offset in the file. The members lie before it.
        size: Its size in bytes.
    """

    start: int
    size: int


def find_directory(file: IO[bytes] | SeekableStream, size: int, name: str) -> Directory:
    """Return the position of a zip archive's directory, if it is whole and not too large.

    Args:
        file: The archive.
        size: Its size in bytes.
        name: Its name, for error sentences.

    Raises:
        ArchiveError: The archive is cut short, has too many members, or the file holds other bytes
            too.
    """
    directory, end = _read_end(file, size, name)
    if directory.start + directory.size != end:
        raise ArchiveError(f"{name} is no whole zip archive: its directory is not where it says.")
    if directory.size > _MAX_BYTES:
        raise too_many(name)
    file.seek(directory.start)
    if _count_entries(file.read(directory.size), name) > MAX_MEMBERS:
        raise too_many(name)
    return directory


def _read_end(file: IO[bytes] | SeekableStream, size: int, name: str) -> tuple[Directory, int]:
    """Return the directory that the end of the file declares, and the offset where it must end."""
    extra = _END_64.size + _LOCATOR.size
    start = max(0, size - _END.size - _MAX_COMMENT - extra)
    file.seek(start)
    tail = file.read(size - start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise ArchiveError(f"{name} is cut short: it begins as a zip archive without an end.")
    _, directory_size, directory_start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise ArchiveError(f"{name} is cut short, or something was appended to it.")
    if at < extra or tail[at - _LOCATOR.size :][:4] != b"PK\6\7":
        return Directory(directory_start, directory_size), start + at
    end = at - extra
    signature, directory_size, directory_start = _END_64.unpack_from(tail, end)
    _, declared_end = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
    if signature != b"PK\6\6" or declared_end != start + end:
        raise ArchiveError(f"{name} is broken: its Zip64 end is not where it says.")
    return Directory(directory_start, directory_size), start + end


def _count_entries(directory: bytes, name: str) -> int:
    """Return the number of entries in a directory, whatever number the archive declares."""
    at = count = 0
    while at < len(directory):
        if directory[at : at + 4] != b"PK\1\2":
            raise ArchiveError(f"{name} is broken: its directory has an entry that is none.")
        at += _ENTRY_BYTES + sum(_LENGTHS.unpack_from(directory, at + _LENGTHS_OFFSET))
        count += 1
    return count
