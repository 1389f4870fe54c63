"""A directory as an archive: TorchServe's ``no-archive`` format, or a Hugging Face hub cache."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from predictor.migration.archive import Archive, archive_errors
from predictor.migration.listing import Listing
from predictor.migration.zip_archive import open_inner


class DirectoryArchive(Archive):
    """The files of a directory. A symbolic link counts as a file if its target lies inside."""

    def __init__(self, listing: Listing[Path]) -> None:
        """Take the checked listing of a directory."""
        super().__init__(listing.name, listing.members())
        self._files = listing.sources()

    @contextlib.contextmanager
    def inner(self, path: str) -> Iterator[Archive]:
        """Open a file that is a zip archive."""
        size, label = self.member(path).size, self.label(path)
        with (
            self._opened(path) as stream,
            open_inner(stream, size, label, is_seekable=True) as archive,
        ):
            yield archive

    def copy(self, path: str, into: Path, on_progress: Callable[[int], None]) -> None:
        """Link a file to its new place, or copy it if it cannot be linked."""
        size = self.member(path).size
        try:
            os.link(self._files[path], into, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:
            # Another file system, one without hard links, the most links of a file, another
            # owner's file: whatever the reason, copying works or raises an error that explains it.
            super().copy(path, into, on_progress)
        else:
            self._check_linked(path, into)
            on_progress(size)

    def _check_linked(self, path: str, into: Path) -> None:
        """Remove a link whose file was replaced since it was listed."""
        status = into.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != self.member(path).size:
            into.unlink()
            raise self.refusal(path, "has changed since it was listed")

    def space_for(self, path: str, folder: Path) -> int:
        """Return the bytes that a file takes in a folder: 0 if it can be linked.

        This makes a link to find out. The kernel refuses links across two mounts of one file
        system and to another owner's file, although both lie on the same device.
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
        # If a link or a pipe has replaced the file, neither follow the one nor wait for the other.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._files[path], flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self.refusal(path, "is no file any more")
        return open(descriptor, "rb")


def open_directory(path: Path, name: str) -> DirectoryArchive:
    """Return a directory that was checked as a whole.

    Args:
        path: The directory, or a link to it.
        name: Its name, for error sentences.

    Raises:
        ArchiveError: It cannot be read, or holds an entry that cannot be imported.
    """
    listing = Listing[Path](name)
    with archive_errors(name):
        root = Path(os.path.realpath(path, strict=True))
        _list(root, listing)
    return DirectoryArchive(listing)


def _list(root: Path, listing: Listing[Path]) -> None:
    """Add everything below a directory, in the order of names."""
    folders = [root]
    while folders:
        subfolders = []
        for entry in _entries(folders.pop()):
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.is_dir(follow_symlinks=False):
                listing.add(name, 0, None)
                subfolders.append(Path(entry.path))
            else:
                file = _file(entry, name, root, listing)
                listing.add(name, file.stat().st_size, file)
        folders.extend(reversed(subfolders))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _file(entry: os.DirEntry[str], name: str, root: Path, listing: Listing[Path]) -> Path:
    """Return the file of an entry, which may be a link to it."""
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
