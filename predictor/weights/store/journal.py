"""Which blocks of an unfinished store are on disk, so that a later process need not write them.

Only stores whose weights are fetched have a journal: what is written is released at the source's
copy, so that a store begun anew would fetch it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictor.weights.store.atomic import write_atomically


class Journal:
    """The blocks of one unfinished store.

    Attributes:
        written: The names of the blocks that an earlier process has written.
    """

    def __init__(
        self, partial: Path, entries: Mapping[str, dict[str, Any]], content: bytes
    ) -> None:
        """Read the journal, and give the entries of written blocks their checksums.

        Args:
            partial: The unfinished store.
            entries: The header's entries by name.
            content: What the store will hold, without checksums.
        """
        self._file = journal_file(partial)
        self._digest = hashlib.sha256(content).hexdigest()
        self._checksums = self._read() if partial.exists() else {}
        self.written = frozenset(self._checksums)
        for name, checksum in self._checksums.items():
            entries[name]["checksum"] = checksum

    def add(self, name: str, checksum: int) -> None:
        """Record a block that is on disk.

        Raises:
            OSError: The volume is full, or fails.
        """
        self._checksums[name] = checksum
        content = {"store": self._digest, "checksums": self._checksums}
        write_atomically(self._file, json.dumps(content))

    def _read(self) -> dict[str, int]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            content = json.loads(self._file.read_bytes())
            if content["store"] == self._digest:
                return {str(name): int(each) for name, each in content["checksums"].items()}
        return {}


def journal_file(partial: Path) -> Path:
    """Return the file beside an unfinished store."""
    return partial.with_name(f"{partial.name}.blocks")


def remove_partial(partial: Path) -> None:
    """Remove an unfinished store with its journal."""
    journal_file(partial).unlink(missing_ok=True)
    partial.unlink(missing_ok=True)


def remove_abandoned(file: Path, *, keeps: bool) -> int:
    """Remove what a killed process has written, and return its bytes. This one holds the lock.

    What may be resumed is left to the writer.
    """
    if not file.exists():
        return 0
    size = file.stat().st_size
    if not keeps:
        remove_partial(file)
    return size
