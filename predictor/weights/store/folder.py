"""The offload volume's folder of stores: one writer at a time, any number of readers.

Beside a store lie two files with its name, which exist to be locked:

- ``.lock``: locked exclusively by the one process that writes the store;
- ``.used``: locked shared by all processes that serve from the store. The file holds a mark while
  one does, and the last process to stop removes the mark. A mark without a lock is left over from a
  process that was killed, or from a node that went down. The next start then checks every block.

On a read-only volume nothing is locked, since no process can write. All files are readable by their
owner alone, since they hold weights, and whoever may write them decides what is served. The layout
of a store is left to `format`, its content to `packing`, and the question whether it holds the
served weights to `served_weights`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictor.weights.progress import Progress
from predictor.weights.store.atomic import PARTIAL, remove_old_partials
from predictor.weights.store.format import Identity, Store, StoreCorrupt, model_of_store, read_store
from predictor.weights.store.journal import journal_file, remove_partial
from predictor.weights.store.locks import OWNER_ONLY, SharedLock, lock, try_lock
from predictor.weights.store.served_weights import ServedWeights
from predictor.weights.store.writer import partial_file

logger = logging.getLogger(__name__)

_SUFFIX = ".store"
_MARK = b"in use\n"


def store_file(folder: Path, name: str) -> Path:
    """Return the file of a model's store.

    Args:
        folder: The offload folder.
        name: The model's name from `converted.folder_name`.
    """
    return folder / f"{name}{_SUFFIX}"


class StoreFolder:
    """The store of one model, in one dtype and one revision.

    Attributes:
        folder: The offload folder.
        identity: The model, revision and dtype that are served.
        weights: The files that are served.
        file: The file of the store.
    """

    def __init__(
        self, folder: Path, identity: Identity, weights: ServedWeights | None = None
    ) -> None:
        """Compute the file's name, and read nothing.

        Args:
            folder: The offload folder.
            identity: The model, revision and dtype that are served.
            weights: The files that are served; None if there are none.
        """
        self.folder = folder
        self.identity = identity
        self.weights = weights or ServedWeights()
        self.file = store_file(folder, identity.name)
        self._use: _Use | None = None

    def needs_hash(self) -> bool:
        """Return whether a store may be that of the served weights, which are not hashed yet."""
        try:
            store = read_store(self.file)
        except (StoreCorrupt, OSError):
            return False
        is_unsure = not self.weights.are_in(store.sources)
        return is_unsure and self.weights.may_be_in(store.sources)

    def find(self, names: Iterable[str], *, verify: bool, progress: Progress) -> Store | None:
        """Return the store if it is intact and has these blocks of the served weights.

        Its use lasts until `release`.

        Args:
            names: The blocks.
            verify: Whether to check every block, even after a clean stop.
            progress: Counts the checked blocks.
        """
        try:
            store = read_store(self.file)
            if store.identity != self.identity:
                raise StoreCorrupt(f"{self.file} holds other weights.")
            if not self.weights.are_in(store.sources):
                raise StoreCorrupt(f"{self.file} was written from files that have changed since.")
        except (FileNotFoundError, PermissionError):  # `writing` says which permission is missing
            return None
        except (StoreCorrupt, OSError) as error:
            logger.warning("The offload store is not used: %s", error)
            return None
        if set(names) - store.blocks.keys():
            return None
        use = _Use(self.file)
        if not self.file.exists():  # another process removed it before this one locked it
            use.end()
            return None
        if verify or use.was_killed:
            reason = "a process that used it was killed" if use.was_killed else "--verify_store"
            logger.info("Checking the offload store %s: %s", self.file, reason)
            try:
                _check(store, progress)
            except (StoreCorrupt, OSError) as error:
                logger.warning("The offload store is not used: %s", error)
                use.end()
                return None
            use.unmark()
        self.release()
        self._use = use
        return store

    def serve(self) -> None:
        """Mark the store as used, until `release`. Call it when requests are answered."""
        if self._use is not None:
            self._use.mark()

    def release(self) -> None:
        """End the use of the store cleanly, so that the next start need not check it."""
        if self._use is not None:
            self._use.end()
            self._use = None

    @contextlib.contextmanager
    def writing(self, *, wait: bool, progress: Progress) -> Iterator[bool]:
        """Lock the store for writing, and yield whether this process holds the lock.

        Args:
            wait: Whether to wait for another process that writes it.
            progress: Shows the wait as a phase.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self.file, ".lock") as descriptor:
            is_locked = try_lock(descriptor)
            if not is_locked and wait:
                progress.begin("waiting for another pod that writes the offload store", {})
                lock(descriptor, of=self.file)
                is_locked = True
            if is_locked:
                self._remove_abandoned()
            try:
                yield is_locked
            finally:
                partial = partial_file(self.file)
                if is_locked and not journal_file(partial).exists():
                    partial.unlink(missing_ok=True)  # of a process that was killed

    def make_room(self, needed: int, free: int) -> int:
        """Remove unused stores of the same model until a new one fits.

        If the volume is full, unused stores of the same model are evicted first, the oldest first.
        If the new store would not fit even then, none is removed.

        Args:
            needed: Bytes that will be written.
            free: Bytes that may be written now.

        Returns:
            Bytes that may be written then.
        """
        unused = {
            file: file.stat().st_size
            for file in self.folder.glob(f"*{_SUFFIX}")
            if file != self.file
            and model_of_store(file) == self.identity.model
            and _is_unused(file)
        }
        if needed > free + sum(unused.values()):
            return free
        for file in sorted(unused, key=lambda file: file.stat().st_mtime):
            if needed <= free:
                break
            free += _remove_unused(file)
        return free

    def _remove_abandoned(self) -> None:
        """Remove files of processes that were killed while they wrote them.

        The own partial file is left to `packing`, which counts its bytes as free.
        """
        remove_old_partials(self.folder, f".*{PARTIAL}", f"*.json{PARTIAL}", ".sample-*")
        for partial in self.folder.glob(f"*{_SUFFIX}{PARTIAL}"):
            store = partial.with_name(partial.name.removesuffix(PARTIAL))
            with contextlib.suppress(OSError), _locked(store, ".lock") as descriptor:
                if store != self.file and try_lock(descriptor):
                    remove_partial(partial)


class _Use:
    """The use of a store by this process; on a read-only volume it does nothing.

    Attributes:
        was_killed: Whether the last process that used the store was killed.
    """

    def __init__(self, file: Path) -> None:
        self.was_killed = False
        self._lock: SharedLock | None = None
        with contextlib.suppress(OSError):
            self._lock = shared = SharedLock(_beside(file, ".used"))
            with shared.try_exclusive() as is_alone:
                self.was_killed = is_alone and os.fstat(shared.descriptor).st_size > 0

    def mark(self) -> None:
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            os.pwrite(self._lock.descriptor, _MARK, 0)
            os.fsync(self._lock.descriptor)

    def unmark(self) -> None:
        """Remove the mark if no other process uses the store."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError), self._lock.try_exclusive() as is_alone:
            if is_alone:
                os.ftruncate(self._lock.descriptor, 0)

    def end(self) -> None:
        self.unmark()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _check(store: Store, progress: Progress) -> None:
    """Check every block.

    Raises:
        StoreCorrupt: A block was altered.
        OSError: A block cannot be read.
    """
    sizes = {name: block.size for name, block in store.blocks.items()}
    progress.begin("checking the offload store", sizes)
    try:
        store.check_all(store.blocks, progress.done)
    finally:
        progress.end()


def _is_unused(file: Path) -> bool:
    try:
        with _locked(file, ".lock") as writing, _locked(file, ".used") as used:
            return try_lock(writing) and try_lock(used)
    except PermissionError:  # of another user
        return False


def _remove_unused(file: Path) -> int:
    """Remove a store, and return its bytes; 0 if a process uses or writes the store."""
    with _locked(file, ".lock") as writing, _locked(file, ".used") as used:
        if not (try_lock(writing) and try_lock(used)):
            return 0
        size = file.stat().st_size
        logger.info("Removing the offload store %s of another revision: space is needed", file)
        file.unlink()
        remove_partial(partial_file(file))
        _beside(file, ".used").unlink(missing_ok=True)
    return size


@contextlib.contextmanager
def _locked(file: Path, suffix: str) -> Iterator[int]:
    """Open a file beside a store, to be locked; the lock ends with the block."""
    descriptor = os.open(_beside(file, suffix), os.O_RDWR | os.O_CREAT, OWNER_ONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)
