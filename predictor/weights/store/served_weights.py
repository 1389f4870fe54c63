"""The weights that a start serves, and whether files written by earlier starts are of the same.

Files that have not changed since are trusted by their stamps. Any others are the same if every
file's SHA-256 is. A file is hashed once: its digest is kept in the offload folder. A start that has
another way to serve does not wait for that, and hashes beside serving.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.errors import LoadFailed, reason_of
from predictor.pod.processors import read_processors
from predictor.quantity import format_bytes
from predictor.weights.progress import Progress
from predictor.weights.store.digests import (
    Digests,
    HashingStopped,
    KnownDigests,
    blob_digest,
    hash_files,
)
from predictor.weights.store.sources import NO_SOURCES, Sources, Stamp

logger = logging.getLogger(__name__)

_SHARE_BESIDE_SERVING = 0.25
"""The share of one thread's time that is spent on hashing beside serving, whose reads and
computations it would slow down."""


def _processors() -> int:
    return read_processors(cgroup_root=Path("/sys/fs/cgroup"), proc=Path("/proc"))


class ServedWeights:
    """The files of the weights that this start serves.

    Attributes:
        sources: The files, as they were before any of them was read.
    """

    def __init__(
        self,
        files: Mapping[str, Path] | None = None,
        commit: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Read the files' stamps.

        Args:
            files: The files, by name.
            commit: The commit on the hub; None for local files.
            folder: The offload folder, which keeps digests; None keeps none.

        Raises:
            OSError: A file is missing.
        """
        self._files = dict(files or {})
        self._kept = KnownDigests(folder)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.sources = Sources.of(self._files.values(), commit) if self._files else NO_SOURCES

    @classmethod
    def of(cls, checkpoint: Checkpoint, offload_folder: Path | None) -> Self:
        """Return the weights of a checkpoint on local disk as they are now.

        Raises:
            LoadFailed: A file is missing.
        """
        files = checkpoint.stored.files if checkpoint.stored is not None else ()
        try:
            return cls({file.name: file for file in files}, checkpoint.revision, offload_folder)
        except OSError as error:
            raise LoadFailed(f"{error.filename} cannot be read: {error.strerror}.") from None

    @property
    def is_hashed(self) -> bool:
        """Whether the digests are known, or a commit makes them needless."""
        return self.sources.commit is not None or self._own_digests() is not None

    def are_in(self, sources: Sources) -> bool:
        """Return whether these are the weights that were read from files at an earlier start.

        False means that they may be others.
        """
        if sources.are_still(self.sources):
            return True
        digests = self._kept.of(sources.stamps) if sources.may_equal(self.sources) else None
        return digests is not None and digests == self._own_digests()

    def may_be_in(self, sources: Sources) -> bool:
        """Return whether `are_in` may be true once these weights are hashed."""
        return (
            not self.is_hashed
            and sources.may_equal(self.sources)
            and self._kept.of(sources.stamps) is not None
        )

    def hash(self, progress: Progress) -> None:
        """Hash all files, and keep their digests.

        Raises:
            OSError: A file cannot be read.
            LoadFailed: A file was changed meanwhile.
        """
        progress.begin(
            "hashing the weights", {name: stamp.size for name, stamp in self._stamps.items()}
        )
        try:
            self._hash("before they are read", _processors(), 1.0, progress.done)
        finally:
            progress.end()
        self.check_unchanged()

    def keep_named(self) -> None:
        """Keep digests that are known by the names of blobs, for starts that have other files.

        Raises:
            LoadFailed: A file has changed.
        """
        digests = self._own_digests()
        if digests is None or self._kept.of(self._stamps) is not None:
            return
        self._keep(digests, time.time_ns())

    def hash_beside_serving(self) -> None:
        """Begin to hash all files in a thread, until `stop`."""
        if self.is_hashed or self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="hashing", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread that hashes."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def check_unchanged(self) -> None:
        """Check that no file has changed since its stamp was read.

        Raises:
            LoadFailed: A file has changed, so that what was read of it may be of two models.
        """
        try:
            changed = [n for n, stamp in self._stamps.items() if Stamp.of(self._files[n]) != stamp]
        except OSError as error:
            raise LoadFailed(f"{error.filename} was removed while it was read.") from None
        if changed:
            raise LoadFailed(
                f"{self._files[changed[0]]} was changed while it was read; start again."
            )

    @property
    def _stamps(self) -> Mapping[str, Stamp]:
        return self.sources.stamps

    def _own_digests(self) -> Digests | None:
        digests = self._kept.of(self._stamps)
        if digests is not None:
            return digests
        blobs = {name: blob_digest(self._files[name]) for name in self._stamps}
        named = {name: digest for name, digest in blobs.items() if digest is not None}
        return named if len(named) == len(self._stamps) else None

    def _run(self) -> None:
        try:
            self._hash("beside serving", 1, _SHARE_BESIDE_SERVING, lambda _: None)
            self.check_unchanged()
        except HashingStopped:
            return
        except (OSError, LoadFailed) as error:
            logger.warning("The weights were not hashed: %s", reason_of(error))

    def _hash(self, when: str, threads: int, share: float, done: Callable[[str], None]) -> None:
        began, files = time.perf_counter(), {name: self._files[name] for name in self._stamps}
        at = time.time_ns()
        digests = hash_files(
            files, threads=threads, share=share, done=done, is_stopped=self._stop.is_set
        )
        seconds = time.perf_counter() - began
        size = sum(stamp.size for stamp in self._stamps.values())
        logger.info(
            "Hashed %d files of weights %s: %s in %.1f s, %s/s",
            *(len(files), when, format_bytes(size), seconds, format_bytes(int(size / seconds))),
        )
        self._keep(digests, at)

    def _keep(self, digests: Digests, at: int) -> None:
        settled = {n: d for n, d in digests.items() if self._stamps[n].is_settled(at)}
        self.check_unchanged()
        self._kept.keep(self._stamps, settled)
