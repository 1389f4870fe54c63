"""Write a directory that appears as a whole or not at all, even if the process is killed.

The content is written beside the target, in a folder that only one process uses at a time, and then
renamed. If the target is a mount point, its parent is another file system. The content is then
written within it and moved out file by file, ending with the file that makes it a model.
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

_STAGING = ".importing"
_CONTENT = "content"
_LOCK = "lock"
_MOVED = "moved.json"
_FILE_SYSTEM_FOLDERS = frozenset({"lost+found"})
"""Folders that a file system makes in its root."""


@contextlib.contextmanager
def staged(into: Path, *, last: str) -> Iterator[Path]:
    """Give an empty folder that becomes `into` when the block ends without an error.

    The remains of an earlier process that was killed are removed.

    Args:
        into: The directory; an absolute path without symbolic links.
        last: The file that completes the directory and is moved last.

    Raises:
        ConfigurationError: The directory is not empty, another process is writing it, or its parent
            does not exist.
        OSError: It cannot be written.
    """
    if not into.parent.is_dir():
        raise ConfigurationError(f"There is no directory {into.parent} to write {into.name} in.")
    staging = into / _STAGING if into.is_mount() else into.with_name(f".{into.name}{_STAGING}")
    with _exclusive(staging, into):
        _undo(into, staging)
        _check_empty(into)
        content = staging / _CONTENT
        content.mkdir()
        yield content
        _sync_tree(content)
        if into.is_mount():
            try:
                _move_each(content, into, staging / _MOVED, last)
            except BaseException:
                _undo(into, staging)
                raise
        else:
            replaced = into.stat() if into.is_dir() else None
            content.rename(into)
            if replaced is not None:
                _copy_ownership(replaced, into)
            _sync(into.parent)


@contextlib.contextmanager
def write_errors(into: Path) -> Iterator[None]:
    """Translate errors of writing the target into one sentence."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{into} cannot be written: {error.strerror}.") from error


@contextlib.contextmanager
def _exclusive(staging: Path, into: Path) -> Iterator[None]:
    """Hold the staging folder's lock, and remove the folder at the end."""
    descriptor = _try_lock(staging)
    if descriptor is None:
        raise ConfigurationError(f"Another import is writing {into}; wait for its end.")
    try:
        yield
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def _try_lock(staging: Path) -> int | None:
    """Return the lock's descriptor; None if another process holds or is just removing it."""
    file = staging / _LOCK
    staging.mkdir(exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with contextlib.suppress(OSError):
        if try_lock(descriptor) and os.fstat(descriptor).st_ino == file.stat().st_ino:
            return descriptor
    os.close(descriptor)
    return None


def _copy_ownership(replaced: os.stat_result, into: Path) -> None:
    """Give a directory the mode and, if permitted, the owner of the one that it replaced."""
    into.chmod(stat.S_IMODE(replaced.st_mode))
    with contextlib.suppress(PermissionError):
        os.chown(into, replaced.st_uid, replaced.st_gid)


def _undo(into: Path, staging: Path) -> None:
    """Remove the remains of a process that was killed."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        for name in json.loads((staging / _MOVED).read_bytes()):
            _remove(into / os.path.basename(name))
    _remove(staging / _MOVED)
    _remove(staging / _CONTENT)


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
    names = {entry.name for entry in folder.iterdir()} - {_STAGING}
    return names - _FILE_SYSTEM_FOLDERS if folder.is_mount() else names


def _move_each(content: Path, into: Path, moved: Path, last: str) -> None:
    names = sorted((entry.name for entry in content.iterdir()), key=lambda name: name == last)
    moved.write_text(json.dumps(names))
    _sync(moved)
    _sync(moved.parent)
    for name in names:
        if name == last:
            _sync(into)
        (content / name).rename(into / name)
    moved.unlink()
    _sync(into)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
