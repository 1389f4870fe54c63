"""Zip archives: a .mar, or the model.zip inside any archive, which is read in place."""

from __future__ import annotations

import contextlib
import stat
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.archive import Archive, archive_errors
from predictor.migration.listing import MAX_RATIO, RATIO_MATTERS_FROM, Listing
from predictor.migration.seekable import SeekableStream
from predictor.migration.zip_directory import find_directory

SIGNATURES = (b"PK\3\4", b"PK\5\6")
"""The first bytes of a zip archive: those of a member or, if it has none, of its end."""

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""The methods of TorchServe's archiver and of zip. `zipfile` does not bound the output of one chunk
of bzip2 or lzma, so a few bytes could take all memory."""

_ENCRYPTED = 0x1 | 0x40 | 0x2000
"""Flags of APPNOTE 4.4.4: encrypted, strongly encrypted, encrypted directory."""

_PATCHED = 0x20
"""The flag of a member that is a patch of another file."""

_HEADER_BYTES = 30
"""Bytes of the header before each member, without the name."""


class ZipArchive(Archive):
    """A zip archive, its members in the order in which they lie."""

    def __init__(
        self, file: zipfile.ZipFile, listing: Listing[zipfile.ZipInfo], *, is_inner: bool
    ) -> None:
        """Take an open archive.

        Args:
            file: The archive.
            listing: Its checked listing.
            is_inner: Whether it lies in another archive.
        """
        super().__init__(listing.name, listing.members())
        self._file, self._infos, self._is_inner = file, listing.sources(), is_inner

    @contextlib.contextmanager
    def inner(self, path: str) -> Iterator[Archive]:
        """Open a member that is a zip archive.

        Copying all of it takes two decompressions of the member: one up to its end, for its
        directory, and one for its members in their order.
        """
        if self._is_inner:
            raise self.refusal(path, "is an archive in an inner archive, which is not read")
        size = self.member(path).size
        with self._opened(path) as stream, open_inner(stream, size, self.label(path)) as archive:
            yield archive

    def _open(self, path: str) -> IO[bytes]:
        return self._file.open(self._infos[path])


@contextlib.contextmanager
def open_zip(
    file: IO[bytes] | SeekableStream, size: int, name: str, *, is_inner: bool = False
) -> Iterator[ZipArchive]:
    """Open a zip archive after checking it as a whole.

    Args:
        file: The archive; it is left open.
        size: Its size in bytes.
        name: Its name, for error sentences.
        is_inner: Whether it lies in another archive.

    Raises:
        ArchiveError: It is broken or not safe to unpack.
    """
    with contextlib.ExitStack() as stack:
        with archive_errors(name):
            directory = find_directory(file, size, name)
            archive = stack.enter_context(zipfile.ZipFile(file))
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        listing = _list(infos, name)
        _check_overlaps(infos, directory.start, listing)
        if _is_bomb(listing.total_bytes, size):
            raise ArchiveError(f"{name} would unpack to {MAX_RATIO} times its size or more.")
        yield ZipArchive(archive, listing, is_inner=is_inner)


@contextlib.contextmanager
def open_inner(
    stream: IO[bytes], size: int, name: str, *, is_seekable: bool = False
) -> Iterator[ZipArchive]:
    """Open a zip archive that is a member of another one, without writing it anywhere.

    Args:
        stream: The member, at its start.
        size: Its declared size in bytes.
        name: Its name, for error sentences.
        is_seekable: Whether seeking back in it costs nothing.

    Raises:
        ArchiveError: It is broken, no zip archive or not safe to unpack.
    """
    with archive_errors(name):
        if stream.read(4) not in SIGNATURES:
            raise ArchiveError(f"{name} is no zip archive.")
        stream.seek(0)
    file: IO[bytes] | SeekableStream = stream
    if not is_seekable:
        seekable = SeekableStream(stream, size, name)
        with archive_errors(name):
            seekable.keep_tail()
        file = seekable
    with open_zip(file, size, name, is_inner=True) as archive:
        yield archive


def _list(infos: Iterable[zipfile.ZipInfo], name: str) -> Listing[zipfile.ZipInfo]:
    listing = Listing[zipfile.ZipInfo](name)
    for info in infos:
        problem = _problem_of(info)
        if problem:
            raise listing.refusal(info.orig_filename, problem)
        listing.add(info.orig_filename, info.file_size, None if _is_folder(info) else info)
    return listing


def _problem_of(info: zipfile.ZipInfo) -> str:
    """Return why an entry must not be unpacked, whatever its name; empty if it may be."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFDIR if _is_folder(info) else stat.S_IFREG}:
        return "is neither a file nor a folder but a link, a device or the like"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS or info.flag_bits & _PATCHED:
        return "is packed by a method that is not read: deflate is, or none"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "is stored as it is, yet with another size than it is said to have"
    if _is_bomb(info.file_size, info.compress_size):
        return f"would unpack to {MAX_RATIO} times its size or more"
    return ""


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith("/")


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > max(RATIO_MATTERS_FROM, MAX_RATIO * packed)


def _check_overlaps(
    infos: Iterable[zipfile.ZipInfo], end: int, listing: Listing[zipfile.ZipInfo]
) -> None:
    """Refuse members that share bytes, which could multiply what they unpack to.

    The extra field before a member's data is left out of the sum. Its length is only known after
    reading it, and members that share no more than that multiply nothing.
    """
    starts = [info.header_offset for info in infos]
    for info, following in zip(infos, [*starts[1:], end], strict=True):
        if (
            info.header_offset + _HEADER_BYTES + len(info.orig_filename) + info.compress_size
            > following
        ):
            raise listing.refusal(info.orig_filename, "overlaps with what follows it")
