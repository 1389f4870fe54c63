"""A directory that is there as a whole or not at all, whatever happens while it is written.

It is written beside its place, in a folder that only one process uses at a time, and moved there at
the end. Where the place is a mount point, whose parent is another file system, it is written within
and moved out file by file, that last which makes it a model.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from predictor.errors import ConfigurationError
from predictor.weights.store.locks import try_lock

_WITHIN = ".importing"
_CONTENT = "content"
_LOCK = "lock"
_MOVED = "moved.json"
_OF_THE_FILE_SYSTEM = frozenset({"lost+found"})


@contextlib.contextmanager
def staged(into: Path, *, last: str) -> Iterator[Path]:
    """Gives an empty folder that becomes `into` when the block ends without an error.

    What an earlier process left that was killed is removed.

    Args:
        into: The directory; an absolute path without symbolic links.
        last: The file without which it is nothing.

    Raises:
        ConfigurationError: It is there and not empty, another process is writing it, or its parent
            is not there.
        OSError: It cannot be written.
    """
    if not into.parent.is_dir():
        raise ConfigurationError(f"There is no directory {into.parent} to write {into.name} in.")
    place = into / _WITHIN if into.is_mount() else into.with_name(f".{into.name}{_WITHIN}")
    with _alone(place, into):
        _undo(into, place)
        _check_empty(into)
        content = place / _CONTENT
        content.mkdir()
        yield content
        _sync(content)
        if into.is_mount():
            try:
                _move_each(content, into, place / _MOVED, last)
            except BaseException:
                _undo(into, place)
                raise
        else:
            before = into.stat() if into.is_dir() else None
            content.rename(into)
            if before is not None:
                _own_as(before, into)
            _sync_one(into.parent)


@contextlib.contextmanager
def _alone(place: Path, into: Path) -> Iterator[None]:
    """Holds the staging folder, which is removed at the end."""
    descriptor = _locked(place)
    if descriptor is None:
        raise ConfigurationError(f"Another import is writing {into}; wait for its end.")
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)


def _locked(place: Path) -> int | None:
    """The open lock; None where another process holds it, or removes it at this moment."""
    file = place / _LOCK
    place.mkdir(exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with contextlib.suppress(OSError):
        if try_lock(descriptor) and os.fstat(descriptor).st_ino == file.stat().st_ino:
            return descriptor
    os.close(descriptor)
    return None


def _own_as(before: os.stat_result, into: Path) -> None:
    """Gives a directory the mode and, if it may, the owner of the one that it replaced."""
    into.chmod(stat.S_IMODE(before.st_mode))
    with contextlib.suppress(PermissionError):
        os.chown(into, before.st_uid, before.st_gid)


def _undo(into: Path, place: Path) -> None:
    """Removes what a process left that was killed."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        for name in json.loads((place / _MOVED).read_bytes()):
            _remove(into / os.path.basename(name))
    _remove(place / _MOVED)
    _remove(place / _CONTENT)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_empty(into: Path) -> None:
    if into.exists() and not into.is_dir():
        raise ConfigurationError(f"{into} is there and no directory.")
    if into.is_dir() and _content_of(into):
        raise ConfigurationError(f"{into} is not empty; name a directory that is to be made.")


def _content_of(folder: Path) -> set[str]:
    names = {entry.name for entry in folder.iterdir()} - {_WITHIN}
    return names - _OF_THE_FILE_SYSTEM if folder.is_mount() else names


def _move_each(content: Path, into: Path, moved: Path, last: str) -> None:
    names = sorted((entry.name for entry in content.iterdir()), key=lambda name: name == last)
    moved.write_text(json.dumps(names))
    _sync_one(moved)
    _sync_one(moved.parent)
    for name in names:
        if name == last:
            _sync_one(into)
        (content / name).rename(into / name)
    moved.unlink()
    _sync_one(into)


def _sync(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(parent, name))
        _sync_one(Path(parent))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
