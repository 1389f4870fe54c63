"""Directories: ``no-archive`` to TorchServe's archiver; a cache of Hugging Face's hub too."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from predictor.migration.members import Archive, reading
from predictor.migration.names import Listing
from predictor.migration.zipped import open_inner


class DirectoryArchive(Archive):
    """A directory's files, and those inside it that its symbolic links lead to."""

    def __init__(self, listing: Listing[Path]) -> None:
        """Takes what was checked of a directory."""
        super().__init__(listing.where, listing.members())
        self._files = listing.sources()

    @contextlib.contextmanager
    def inner(self, path: str) -> Iterator[Archive]:
        """Opens the zip archive that a file is."""
        size, where = self.member(path).size, self.named(path)
        with (
            self._opened(path) as stream,
            open_inner(stream, size, where, goes_anywhere=True) as archive,
        ):
            yield archive

    def copy(self, path: str, into: Path, told: Callable[[int], None]) -> None:
        """Links a file to where it shall be; copies it where that cannot be done."""
        size = self.member(path).size
        try:
            os.link(self._files[path], into, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:
            # Another file system, one without links, a file with as many as it may have, a file of
            # somebody else's: whatever it is, copying works or says what is wrong.
            super().copy(path, into, told)
        else:
            self._check_linked(path, into)
            told(size)

    def _check_linked(self, path: str, into: Path) -> None:
        """Takes away a link to what took the place of a file since it was listed."""
        status = into.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != self.member(path).size:
            into.unlink()
            raise self.refusal(path, "has changed since it was listed")

    def space_for(self, path: str, folder: Path) -> int:
        """Returns the bytes that a file takes in a folder: 0 where it can be linked.

        Only trying tells: a file system that is mounted twice and a file of somebody else's are
        refused by the kernel, though all lies on one device.
        """
        size = self.member(path).size
        probe = folder / f".link.{os.getpid()}"
        try:
            os.link(self._files[path], probe, follow_symlinks=False)
        except OSError:
            return size
        probe.unlink()
        return 0

    def _open(self, path: str) -> IO[bytes]:
        # Neither follows a link nor waits for a pipe's other end, if one took the file's place.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._files[path], flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self.refusal(path, "is no file any more")
        return open(descriptor, "rb")


def open_directory(path: Path, where: str) -> DirectoryArchive:
    """Returns a directory that was checked as a whole.

    Args:
        path: The directory, or a link to it.
        where: Its name, for sentences.

    Raises:
        ArchiveError: It cannot be read, or has in it what is not taken over.
    """
    listing = Listing[Path](where)
    with reading(where):
        root = Path(os.path.realpath(path, strict=True))
        _list(root, listing)
    return DirectoryArchive(listing)


def _list(root: Path, listing: Listing[Path]) -> None:
    """Adds what lies below a directory, in the order of names."""
    folders = [root]
    while folders:
        below = []
        for entry in _entries(folders.pop()):
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.is_dir(follow_symlinks=False):
                listing.add(name, 0, None)
                below.append(Path(entry.path))
            else:
                file = _file(entry, name, root, listing)
                listing.add(name, file.stat().st_size, file)
        folders.extend(reversed(below))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _file(entry: os.DirEntry[str], name: str, root: Path, listing: Listing[Path]) -> Path:
    """Returns the file that an entry is or leads to."""
    try:
        file = Path(os.path.realpath(entry.path, strict=True))
    except OSError:
        raise listing.refusal(name, "is a link that leads nowhere") from None
    if not file.is_relative_to(root):
        raise listing.refusal(name, "is a link that leads outside it: name the folder of both")
    if not file.is_file():
        raise listing.refusal(name, "is neither a file nor a link to one")
    if not os.access(file, os.R_OK, effective_ids=True):
        raise listing.refusal(name, "may not be read")
    return file
