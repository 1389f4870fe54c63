"""A zip archive's central directory, measured before `zipfile` makes an object of each entry.

`zipfile` takes a zip archive with anything before or after it; then two programs may see different
archives in one file. Here the archive is the whole file or it is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.forward import Forward
from predictor.migration.names import MOST_MEMBERS, too_many

_END = struct.Struct("<4s8x2LH")
"""End of central directory: signature, the directory's size and offset, the comment's length."""

_END_64 = struct.Struct("<4s36x2Q")
_LOCATOR = struct.Struct("<4s4xQ4x")
"""Their Zip64 forms (APPNOTE 4.3.14 and 4.3.15), as long as `zipfile` takes them to be."""

_ENTRY_BYTES, _LENGTHS_AT = 46, 28
_LENGTHS = struct.Struct("<3H")
"""Of an entry: its fixed part, and where the lengths of name, extra field and comment are."""

_MOST_COMMENT = 65535

_MOST_BYTES = 32 * 1024**2
"""Bytes of a directory: 335 for each of the most members."""


@dataclass(frozen=True, slots=True)
class Directory:
    """Where a central directory lies.

    Attributes:
        start: Its offset in the file; members lie before it.
        size: Bytes that it has.
    """

    start: int
    size: int


def find_directory(file: IO[bytes] | Forward, size: int, where: str) -> Directory:
    """Returns where a zip archive's directory lies, if it is whole and not too large.

    Args:
        file: The archive.
        size: Bytes that it has.
        where: Its name, for sentences.

    Raises:
        ArchiveError: The archive is cut short, or has more than an archive in it.
    """
    directory, end = _read_end(file, size, where)
    if directory.start + directory.size != end:
        raise ArchiveError(f"{where} is no whole zip archive: its directory is not where it says.")
    if directory.size > _MOST_BYTES:
        raise too_many(where)
    file.seek(directory.start)
    if _count(file.read(directory.size), where) > MOST_MEMBERS:
        raise too_many(where)
    return directory


def _read_end(file: IO[bytes] | Forward, size: int, where: str) -> tuple[Directory, int]:
    """Returns what the end of the file says of the directory, and where that must end."""
    extra = _END_64.size + _LOCATOR.size
    start = max(0, size - _END.size - _MOST_COMMENT - extra)
    file.seek(start)
    tail = file.read(size - start)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise ArchiveError(f"{where} is cut short: it begins as a zip archive without an end.")
    _, directory_size, directory_start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise ArchiveError(f"{where} is cut short, or something was appended to it.")
    if at < extra or tail[at - _LOCATOR.size :][:4] != b"PK\6\7":
        return Directory(directory_start, directory_size), start + at
    end = at - extra
    signature, directory_size, directory_start = _END_64.unpack_from(tail, end)
    _, said = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
    if signature != b"PK\6\6" or said != start + end:
        raise ArchiveError(f"{where} is broken: its Zip64 end is not where it says.")
    return Directory(directory_start, directory_size), start + end


def _count(directory: bytes, where: str) -> int:
    """Returns how many entries a directory has, whatever number it says."""
    at = count = 0
    while at < len(directory):
        if directory[at : at + 4] != b"PK\1\2":
            raise ArchiveError(f"{where} is broken: its directory has an entry that is none.")
        at += _ENTRY_BYTES + sum(_LENGTHS.unpack_from(directory, at + _LENGTHS_AT))
        count += 1
    return count
