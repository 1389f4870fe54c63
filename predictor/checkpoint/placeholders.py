"""Recognises files that stand where a model's file should be, and hold none of it."""

from __future__ import annotations

from pathlib import Path

from predictor.errors import CheckpointError

_LFS = b"version https://git-lfs.github.com/spec/"
"""The beginning of a pointer of Git LFS, in place of a file that was not fetched
(https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""


def refuse_placeholder(file: Path) -> None:
    """Return if a file has content of its own.

    Raises:
        CheckpointError: The file is empty, is a pointer of Git LFS, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    if not start:
        raise CheckpointError(f"{file} is empty.")
    if start == _LFS:
        raise CheckpointError(
            f"{file} is a pointer of Git LFS and not the file itself; fetch it with git lfs pull."
        )
