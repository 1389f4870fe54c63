"""Tar archives, compressed by gzip or not: the format that TorchServe's archiver calls ``tgz``."""

from __future__ import annotations

import contextlib
import gzip
import sys
import tarfile
from collections.abc import Iterator
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.archive import CHUNK, Archive, archive_errors
from predictor.migration.listing import MAX_RATIO, Listing
from predictor.migration.seekable import Readable, SeekableStream
from predictor.migration.zip_archive import open_inner

GZIP = b"\x1f\x8b"
"""The first bytes of a gzip file."""

MAGIC, MAGIC_OFFSET = b"ustar", 257
"""The magic bytes in the first header of a tar archive, and their offset."""

_MAX_HEADER_BYTES = 1024**2
"""Bytes of headers between two members. `tarfile` reads a long name or a PAX header of any size
into memory, and a sparse file's map of any length."""

_RATIO_MATTERS_FROM = 256 * 1024**2
"""Bytes from which on gzip's ratio is checked. It is counted from the start of the file, not over
the whole, and weights may begin with a vocabulary of zeros."""


class TarArchive(Archive):
    """A tar archive, its members in the order in which they lie."""

    def __init__(
        self, file: tarfile.TarFile, listing: Listing[tarfile.TarInfo], *, is_seekable: bool
    ) -> None:
        """Take an open archive.

        Args:
            file: The archive.
            listing: Its checked listing.
            is_seekable: Whether seeking back in it costs nothing.
        """
        super().__init__(listing.name, listing.members())
        self._file, self._infos, self._is_seekable = file, listing.sources(), is_seekable

    @contextlib.contextmanager
    def inner(self, path: str) -> Iterator[Archive]:
        """Open a member that is a zip archive.

        Copying all of it out of a compressed archive takes two decompressions up to the member's
        end, after the one that listed the archive.
        """
        size, label = self.member(path).size, self.label(path)
        with (
            self._opened(path) as stream,
            open_inner(stream, size, label, is_seekable=self._is_seekable) as archive,
        ):
            yield archive

    def _open(self, path: str) -> IO[bytes]:
        stream = self._file.extractfile(self._infos[path])
        if stream is None:
            raise self.refusal(path, "is no file")
        return stream


@contextlib.contextmanager
def open_tar(file: IO[bytes], name: str, *, is_compressed: bool) -> Iterator[TarArchive]:
    """Open a tar archive after reading it once and checking it as a whole.

    Args:
        file: The archive; it is left open.
        name: Its name, for error sentences.
        is_compressed: Whether it is compressed by gzip.

    Raises:
        ArchiveError: It is broken or not safe to unpack.
    """
    with contextlib.ExitStack() as stack:
        unpacked: Readable = stack.enter_context(_Gunzip(file, name)) if is_compressed else file
        stream = _TarStream(unpacked, name, is_seekable=not is_compressed)
        with archive_errors(name):
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:", encoding="utf-8"))
            listing = _list(archive, stream, name)
            _check_end(stream, archive.offset, name)
        yield TarArchive(archive, listing, is_seekable=not is_compressed)


class _Gunzip(gzip.GzipFile):
    """A gzip file that refuses to unpack to far more bytes than it has read."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._packed, self._name = file, name

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > max(_RATIO_MATTERS_FROM, MAX_RATIO * self._packed.tell()):
            raise ArchiveError(f"{self._name} would unpack to {MAX_RATIO} times its size or more.")
        return data


class _TarStream(SeekableStream):
    """The bytes of a tar archive, with a bound on headers while its members are listed."""

    def __init__(self, file: Readable, name: str, *, is_seekable: bool) -> None:
        super().__init__(file, sys.maxsize, name, is_seekable=is_seekable)
        self._header_bytes = 0
        self._is_listing = True

    def member_listed(self) -> None:
        """Restart the count of header bytes."""
        self._header_bytes = 0

    def all_listed(self) -> None:
        """Stop counting header bytes."""
        self._is_listing = False

    def read(self, size: int = -1, /) -> bytes:
        """Return `size` bytes.

        Raises:
            ArchiveError: They belong to a header that is too long.
        """
        self._header_bytes += size
        if size < 0 or (self._is_listing and self._header_bytes > _MAX_HEADER_BYTES):
            raise ArchiveError(f"{self._name} has a member with more than 1 MiB of headers.")
        return super().read(size)


def _list(archive: tarfile.TarFile, stream: _TarStream, name: str) -> Listing[tarfile.TarInfo]:
    listing = Listing[tarfile.TarInfo](name)
    for info in archive:
        path = info.name.removeprefix("./")  # as `tar -c .` writes them
        if not (info.isdir() and path == "."):
            _check_kind(info, listing)
            listing.add(path, info.size, None if info.isdir() else info)
        stream.member_listed()
    stream.all_listed()
    return listing


def _check_kind(info: tarfile.TarInfo, listing: Listing[tarfile.TarInfo]) -> None:
    if info.issparse():
        raise listing.refusal(info.name, "is a sparse file, which is not read")
    if info.islnk() or info.issym():
        raise listing.refusal(info.name, "is a link; pack the files themselves (tar -h)")
    if not (info.isreg() or info.isdir()):
        raise listing.refusal(info.name, "is neither a file nor a folder but a device or the like")


def _check_end(stream: _TarStream, end: int, name: str) -> None:
    """Check that only the zeros that end a tar archive are left.

    `tarfile` takes an invalid header for the end and reads no further. Only the last bytes of a
    gzip file show whether it is whole.
    """
    stream.seek(end)
    left = 0
    while chunk := stream.read(CHUNK):
        if chunk.count(0) != len(chunk):
            raise ArchiveError(f"{name} is broken, or something was appended to it.")
        left += len(chunk)
    if left < tarfile.BLOCKSIZE:
        raise ArchiveError(f"{name} is cut short: it has no end.")
