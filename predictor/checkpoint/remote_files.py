"""Weights that are fetched while they are loaded: what loading needs to know of them.

The headers of their files are on local disk, and the tensors perhaps not. `weights.remote` fetches
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol


class RemoteWeights(Protocol):
    """Files of weights that look whole on local disk, and whose tensors are fetched on demand."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""

    @property
    def largest(self) -> int:
        """Bytes of the largest file."""

    def require(self, file: Path, names: Collection[str]) -> None:
        """Have tensors of a file on local disk, as the source has them, after a check of the file.

        Args:
            file: The local file.
            names: The tensors.

        Raises:
            HubUnreachable: The source cannot be reached.
            CheckpointError: The source denies access, or has a damaged file.
            LoadFailed: The source has another file than it listed.
            ConfigurationError: The volume is full.
        """

    def names_within(self, file: Path, begin: int, end: int) -> Collection[str]:
        """Return the tensors of a file that have bytes between two offsets."""

    def preview(self, file: Path, name: str) -> None:
        """Have one tensor on local disk, whose file is checked when more of it is required.

        Raises:
            As `require`.
        """

    def complete(self) -> None:
        """Have all tensors on local disk that are not in memory, to be read in place.

        Raises:
            As `require`.
        """

    def release(self, file: Path, names: Collection[str]) -> None:
        """Release the space of tensors that are not read again: the store has them."""

    def copied(self, file: Path, names: Collection[str]) -> None:
        """Release the space of tensors that are in memory, unless restarts shall find them."""

    def close(self) -> None:
        """End the use of the files."""


def require_ranges(remote: RemoteWeights | None, ranges: Iterable[tuple[Path, int, int]]) -> None:
    """Have bytes of files on local disk, each from an offset up to another one.

    Raises:
        As `RemoteWeights.require`.
    """
    if remote is None:
        return
    for file, begin, end in ranges:
        remote.require(file, remote.names_within(file, begin, end))
