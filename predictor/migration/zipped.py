"""Zip archives: a .mar, and the model.zip inside any archive, which is read where it lies."""

from __future__ import annotations

import contextlib
import stat
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO

from predictor.errors import ArchiveError
from predictor.migration.forward import Forward
from predictor.migration.members import Archive, reading
from predictor.migration.names import MOST_RATIO, RATIO_MATTERS_FROM, Listing
from predictor.migration.zip_directory import find_directory

SIGNATURES = (b"PK\3\4", b"PK\5\6")
"""How a zip archive begins: with a member, or, where it has none, with its end."""

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""What TorchServe's archiver and zip write. `zipfile` sets no bound on what a chunk of bzip2 or
lzma may become, so that few bytes could take all memory."""

_ENCRYPTED = 0x1 | 0x40 | 0x2000
"""Flags of APPNOTE 4.4.4: encrypted, strongly encrypted, encrypted directory."""

_PATCHED = 0x20
"""Flag of a member that is the difference to another file."""

_HEADER_BYTES = 30
"""Of the header before each member, without the name."""


class ZipArchive(Archive):
    """A zip archive, its members in the order in which they lie."""

    def __init__(
        self, file: zipfile.ZipFile, listing: Listing[zipfile.ZipInfo], *, is_inner: bool
    ) -> None:
        """Takes an open archive and what was checked of it."""
        super().__init__(listing.where, listing.members())
        self._file, self._infos, self._is_inner = file, listing.sources(), is_inner

    @contextlib.contextmanager
    def inner(self, path: str) -> Iterator[Archive]:
        """Opens the zip archive that a member is.

        Copying all of it takes two decompressions of the member: one as far as its end, where its
        directory lies, and one for its members in their order.
        """
        if self._is_inner:
            raise self.refusal(path, "is an archive in an inner archive, which is not read")
        size = self.member(path).size
        with self._opened(path) as stream, open_inner(stream, size, self.named(path)) as archive:
            yield archive

    def _open(self, path: str) -> IO[bytes]:
        return self._file.open(self._infos[path])


@contextlib.contextmanager
def open_zip(
    file: IO[bytes] | Forward, size: int, where: str, *, is_inner: bool = False
) -> Iterator[ZipArchive]:
    """Gives a zip archive that was checked as a whole.

    Args:
        file: The archive; it is left open.
        size: Bytes that it has.
        where: Its name, for sentences.
        is_inner: Whether it lies in another archive.

    Raises:
        ArchiveError: It is broken or not safe to unpack.
    """
    with contextlib.ExitStack() as stack:
        with reading(where):
            directory = find_directory(file, size, where)
            archive = stack.enter_context(zipfile.ZipFile(file))
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        listing = _listed(infos, where)
        _check_places(infos, directory.start, listing)
        if _swells(listing.bytes, size):
            raise ArchiveError(f"{where} would unpack to {MOST_RATIO} times its size or more.")
        yield ZipArchive(archive, listing, is_inner=is_inner)


@contextlib.contextmanager
def open_inner(
    stream: IO[bytes], size: int, where: str, *, goes_anywhere: bool = False
) -> Iterator[ZipArchive]:
    """Gives the zip archive that a member of another is, without writing it anywhere.

    Args:
        stream: The member, at its beginning.
        size: Bytes that it is said to have.
        where: Its name, for sentences.
        goes_anywhere: Whether going back in it costs nothing.

    Raises:
        ArchiveError: It is broken, no zip archive or not safe to unpack.
    """
    with reading(where):
        if stream.read(4) not in SIGNATURES:
            raise ArchiveError(f"{where} is no zip archive.")
        stream.seek(0)
    file: IO[bytes] | Forward = stream
    if not goes_anywhere:
        forward = Forward(stream, size, where)
        with reading(where):
            forward.keep_tail()
        file = forward
    with open_zip(file, size, where, is_inner=True) as archive:
        yield archive


def _listed(infos: Iterable[zipfile.ZipInfo], where: str) -> Listing[zipfile.ZipInfo]:
    listing = Listing[zipfile.ZipInfo](where)
    for info in infos:
        wrong = _wrong_with(info)
        if wrong:
            raise listing.refusal(info.orig_filename, wrong)
        listing.add(info.orig_filename, info.file_size, None if _is_folder(info) else info)
    return listing


def _wrong_with(info: zipfile.ZipInfo) -> str:
    """Returns why an entry must not be unpacked whatever its name, or nothing."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFDIR if _is_folder(info) else stat.S_IFREG}:
        return "is neither a file nor a folder but a link, a device or the like"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS or info.flag_bits & _PATCHED:
        return "is packed by a method that is not read: deflate is, or none"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "is stored as it is, yet with another size than it is said to have"
    if _swells(info.file_size, info.compress_size):
        return f"would unpack to {MOST_RATIO} times its size or more"
    return ""


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith("/")


def _swells(unpacked: int, packed: int) -> bool:
    return unpacked > max(RATIO_MATTERS_FROM, MOST_RATIO * packed)


def _check_places(
    infos: Iterable[zipfile.ZipInfo], end: int, listing: Listing[zipfile.ZipInfo]
) -> None:
    """Refuses members that share bytes: many of them may unpack the same, or each a part more.

    The extra field before a member's data is left out of the sum: only reading there would tell
    its length, and what shares no more than that multiplies nothing.
    """
    starts = [info.header_offset for info in infos]
    for info, following in zip(infos, [*starts[1:], end], strict=True):
        if (
            info.header_offset + _HEADER_BYTES + len(info.orig_filename) + info.compress_size
            > following
        ):
            raise listing.refusal(info.orig_filename, "overlaps with what follows it")
