"""Tar archives, compressed by gzip or not: what TorchServe's archiver calls ``tgz``."""

from __future__ import annotations

import contextlib
import gzip
import sys
import tarfile
from collections.abc import Iterator
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.forward import Forward, Readable
from predictor.migration.members import CHUNK, Archive, reading
from predictor.migration.names import MOST_RATIO, Listing
from predictor.migration.zipped import open_inner

GZIP = b"\x1f\x8b"
MAGIC, MAGIC_AT = b"ustar", 257
"""How gzip files begin, and what the first header of a tar archive has where."""

_MOST_HEADER_BYTES = 1024**2
"""Bytes of headers between two members. `tarfile` reads a long name or a PAX header of any size
into memory, and goes through a sparse file's map of any length."""

_RATIO_MATTERS_FROM = 256 * 1024**2
"""Bytes from which on the ratio of gzip matters, counted from the beginning and not for the whole:
weights may begin with a vocabulary of zeros."""


class TarArchive(Archive):
    """A tar archive, its members in the order in which they lie."""

    def __init__(
        self, file: tarfile.TarFile, listing: Listing[tarfile.TarInfo], *, goes_anywhere: bool
    ) -> None:
        """Takes an open archive, what was checked of it, and whether going back costs nothing."""
        super().__init__(listing.where, listing.members())
        self._file, self._infos, self._goes_anywhere = file, listing.sources(), goes_anywhere

    @contextlib.contextmanager
    def inner(self, path: str) -> Iterator[Archive]:
        """Opens the zip archive that a member is.

        Copying all of it out of a compressed archive takes two decompressions as far as the
        member's end, after the one that listed the archive.
        """
        size, where = self.member(path).size, self.named(path)
        with (
            self._opened(path) as stream,
            open_inner(stream, size, where, goes_anywhere=self._goes_anywhere) as archive,
        ):
            yield archive

    def _open(self, path: str) -> IO[bytes]:
        stream = self._file.extractfile(self._infos[path])
        if stream is None:
            raise self.refusal(path, "is no file")
        return stream


@contextlib.contextmanager
def open_tar(file: IO[bytes], where: str, *, is_compressed: bool) -> Iterator[TarArchive]:
    """Gives a tar archive that was read once and checked as a whole.

    Args:
        file: The archive; it is left open.
        where: Its name, for sentences.
        is_compressed: Whether it is compressed by gzip.

    Raises:
        ArchiveError: It is broken or not safe to unpack.
    """
    with contextlib.ExitStack() as stack:
        plain: Readable = stack.enter_context(_Gunzipped(file, where)) if is_compressed else file
        source = _Source(plain, where, goes_anywhere=not is_compressed)
        with reading(where):
            archive = stack.enter_context(_open_listed(source))
            listing = _listed(archive, source, where)
            _check_end(source, archive.offset, where)
        yield TarArchive(archive, listing, goes_anywhere=not is_compressed)


class _Gunzipped(gzip.GzipFile):
    """What gzip unpacks, as long as that is no more than what it read of lets expect."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._packed, self._where = file, where

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > max(_RATIO_MATTERS_FROM, MOST_RATIO * self._packed.tell()):
            raise ArchiveError(
                f"{self._where} would unpack to {MOST_RATIO} times its size or more."
            )
        return data


class _Source(Forward):
    """The bytes of a tar archive, with a bound on headers while its members are listed."""

    def __init__(self, file: Readable, where: str, *, goes_anywhere: bool) -> None:
        super().__init__(file, sys.maxsize, where, goes_anywhere=goes_anywhere)
        self._header_bytes = 0
        self._is_listing = True

    def member_listed(self) -> None:
        """Begins to count anew."""
        self._header_bytes = 0

    def all_listed(self) -> None:
        """Ends the counting."""
        self._is_listing = False

    def read(self, size: int = -1, /) -> bytes:
        """Returns so many bytes; refuses to in a header that is too long."""
        self._header_bytes += size
        if size < 0 or (self._is_listing and self._header_bytes > _MOST_HEADER_BYTES):
            raise ArchiveError(f"{self._where} has a member with more than 1 MiB of headers.")
        return super().read(size)


def _open_listed(source: _Source) -> tarfile.TarFile:
    return tarfile.open(fileobj=source, mode="r:", encoding="utf-8")


def _listed(archive: tarfile.TarFile, source: _Source, where: str) -> Listing[tarfile.TarInfo]:
    listing = Listing[tarfile.TarInfo](where)
    for info in archive:
        name = info.name.removeprefix("./")  # as `tar -c .` writes them
        if not (info.isdir() and name == "."):
            _check_kind(info, listing)
            listing.add(name, info.size, None if info.isdir() else info)
        source.member_listed()
    source.all_listed()
    return listing


def _check_kind(info: tarfile.TarInfo, listing: Listing[tarfile.TarInfo]) -> None:
    if info.issparse():
        raise listing.refusal(info.name, "is a sparse file, which is not read")
    if info.islnk() or info.issym():
        raise listing.refusal(info.name, "is a link; pack the files themselves (tar -h)")
    if not (info.isreg() or info.isdir()):
        raise listing.refusal(info.name, "is neither a file nor a folder but a device or the like")


def _check_end(source: _Source, end: int, where: str) -> None:
    """Reads what is left, which must be the zeros that end an archive.

    `tarfile` takes a header that is none for the end, and reads no further than it; only the last
    bytes of a gzip file tell whether it is whole.
    """
    source.seek(end)
    left = 0
    while chunk := source.read(CHUNK):
        if chunk.count(0) != len(chunk):
            raise ArchiveError(f"{where} is broken, or something was appended to it.")
        left += len(chunk)
    if left < tarfile.BLOCKSIZE:
        raise ArchiveError(f"{where} is cut short: it has no end.")
