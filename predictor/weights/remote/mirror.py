"""The local folder of one revision of a source: its small files, and its shards.

A folder lies in the offload folder, so that restarts find in it what earlier starts have fetched.
Two files beside it exist to be locked:

- ``.lock``: exclusively by the one process that loads from it;
- ``.used``: shared by all processes that serve from it. Nothing is released while another one does.

Folders of other revisions that no process uses are removed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.weight_files import stays_within
from predictor.errors import ConfigurationError, HubUnreachable
from predictor.quantity import format_bytes
from predictor.weights.remote import ranges
from predictor.weights.remote.revisions import (
    base_name,
    beside,
    folders_of,
    read_manifest,
    remove_others,
    write_manifest,
)
from predictor.weights.remote.shard import Shard
from predictor.weights.remote.source import Listing, NoWeights, Source
from predictor.weights.store.locks import OWNER_ONLY, SharedLock, lock

logger = logging.getLogger(__name__)

FOLDER = "sources"
"""The name of the folder of all mirrors in the offload folder."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Mirror:
    """What is on local disk of one revision of a source.

    Attributes:
        path: The folder.
        listing: The files of the source.
        fetched: Called with the bytes of each piece of weights that was fetched.
        keeps_resident: Whether tensors that stay in memory are kept for restarts.
    """

    def __init__(self, path: Path, source: Source, listing: Listing) -> None:
        """Lock the folder, and wait for a process that loads from it.

        Raises:
            OSError: The volume cannot be written.
        """
        self.path, self.listing = path, listing
        self.fetched: Callable[[int], None] = lambda _: None
        self.keeps_resident = True
        self._source = source
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._loading = os.open(beside(path, ".lock"), os.O_RDWR | os.O_CREAT, OWNER_ONLY)
        lock(self._loading, of=path)
        self._use = SharedLock(beside(path, ".used"))
        self._use.acquire()
        self._shards: dict[Path, Shard] = {}
        self._resident: set[tuple[Path, str]] = set()

    def fetch_small(self, patterns: Sequence[str]) -> None:
        """Fetch the small files, and the headers of the weights.

        Raises:
            HubUnreachable, CheckpointError: As of `ranges.fetch_range`.
            OSError: The volume fails.
        """
        for file in self.listing.small(patterns):
            target = self.path / file.name
            if not stays_within(file.name) or (
                target.is_file() and target.stat().st_size == file.size
            ):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            partial.write_bytes(ranges.fetch_range(self._source, file, 0, file.size))
            partial.replace(target)
        for file in self.listing.weights:
            shard = Shard(self.path, file, self._source)
            shard.fetched = lambda size: self.fetched(size)
            self._shards[shard.path] = shard

    def keep(self, files: Collection[Path]) -> None:
        """Fetch nothing of files of weights that are not among these: the model uses no others."""
        self._shards = {path: shard for path, shard in self._shards.items() if path in files}

    @property
    def missing_bytes(self) -> int:
        """Bytes of weights that are not on local disk."""
        return sum(shard.missing_bytes for shard in self._shards.values())

    @property
    def held_bytes(self) -> int:
        """Bytes that files of weights take on local disk, holes excluded."""
        return sum(path.stat().st_blocks * 512 for path in self._shards)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files of weights."""
        return sum(shard.file.size for shard in self._shards.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest file of weights."""
        return max((shard.file.size for shard in self._shards.values()), default=0)

    def require(self, file: Path, names: Collection[str]) -> None:
        """Have tensors of a file there; see `RemoteWeights`."""
        if file not in self._shards:  # a file that transformers has written
            return
        shard = self._shards[file]
        with self._errors():
            if not shard.has(names) and self._is_alone():
                self._flush_others(shard)
            shard.require(names)

    def names_within(self, file: Path, begin: int, end: int) -> Collection[str]:
        """Return tensors of a file; see `RemoteWeights`."""
        return self._shards[file].names_within(begin, end) if file in self._shards else ()

    def preview(self, file: Path, name: str) -> None:
        """Have one tensor of a file there, unchecked; see `RemoteWeights`."""
        with self._errors():
            self._shards[file].preview(name)

    def complete(self) -> None:
        """Have all tensors there that are not in memory, to be read in place."""
        for file, shard in self._shards.items():
            self.require(file, [name for name in shard.names if (file, name) not in self._resident])

    def release(self, file: Path, names: Collection[str]) -> None:
        """Release tensors of a file, unless another process serves from the folder."""
        if file in self._shards and self._is_alone():
            with self._errors():
                self._shards[file].release(names)

    def _flush_others(self, shard: Shard) -> None:
        """Release what waits for it of all files but one, which is fetched next."""
        for other in self._shards.values():
            if other is not shard:
                other.flush()

    def copied(self, file: Path, names: Collection[str]) -> None:
        """Release tensors that are in memory, unless restarts shall find them."""
        self._resident.update((file, name) for name in names)
        if not self.keeps_resident:
            self.release(file, names)

    def settle(self, *, has_store: bool) -> None:
        """Release what is not read again, and let other processes load.

        Args:
            has_store: Whether a store has what is not in memory; else it is read here.

        Raises:
            ConfigurationError: The volume is full.
        """
        if self._loading < 0:
            return
        if self._is_alone():
            for shard in self._shards.values():
                names = [name for name in shard.names if not self._is_kept(shard, name, has_store)]
                with self._errors():
                    shard.release(names)
                    shard.flush()
        os.close(self._loading)
        self._loading = -1

    def _is_kept(self, shard: Shard, name: str, has_store: bool) -> bool:
        is_resident = (shard.path, name) in self._resident
        return self.keeps_resident if is_resident else not has_store

    def applied_to(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the checkpoint in the folder, with its origin."""
        return replace(
            checkpoint,
            model_id=self._source.name,
            revision=self.listing.revision,
            ref=self._source.ref,
            remote=self,
        )

    def close(self) -> None:
        """End the use of the folder."""
        if self._loading >= 0:
            os.close(self._loading)
            self._loading = -1
        self._use.close()

    def _is_alone(self) -> bool:
        with self._use.try_exclusive() as is_alone:
            return is_alone

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise ConfigurationError(
                f"The volume of {self.path} is full while weights are fetched to it: "
                f"{format_bytes(self.missing_bytes)} are missing; give it more space."
            ) from None


def open_mirror(source: Source, folder: Path, patterns: Sequence[str]) -> Mirror:
    """Return the mirror of a source, with its small files and the headers of its weights.

    If the source cannot be reached, what an earlier start has fetched of it is used.

    Args:
        source: The source.
        folder: The folder of all mirrors.
        patterns: Patterns of the names of small files.

    Raises:
        HubUnreachable: The source cannot be reached, and there is no earlier mirror.
        CheckpointError: The source has no safetensors files.
        ConfigurationError: The folder cannot be written.
    """
    base = folder / base_name(source)
    listing = _list(source, base)
    if not listing.weights:
        raise NoWeights(f"{source.name} holds no safetensors files.")
    try:
        mirror = Mirror(Path(f"{base}-{listing.revision[:12]}"), source, listing)
        try:
            mirror.fetch_small(patterns)
            write_manifest(mirror.path, source.ref, listing)
            remove_others(base, mirror.path)
        except BaseException:
            mirror.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written: {error.strerror}; weights from {source.name} are fetched "
            "to the offload folder."
        ) from None
    return mirror


def _list(source: Source, base: Path) -> Listing:
    try:
        return source.listing()
    except HubUnreachable as error:
        listings = [read_manifest(path, source.ref) for path in folders_of(base)]
        usable = [listing for listing in listings if listing is not None]
        if not usable:
            raise HubUnreachable(
                f"{source.name} cannot be reached ({str(error).rstrip('.')}), and no earlier start "
                "has fetched it."
            ) from None
        logger.warning(
            "%s cannot be reached (%s): what was fetched of revision %s is served",
            *(source.name, error, usable[-1].revision),
        )
        source.pin(usable[-1].revision)
        return usable[-1]
