"""The offload volume's folder of stores: who may write, who reads, what is stale.

Beside a store lie, under its name, two files that are only locked:

- ``.lock``: held alone by the one process that writes the store;
- ``.used``: shared by all that serve from it. It holds a mark while someone does, which the last
  to stop takes away. A mark that nobody holds was left by a process that was killed, or by a node
  that went down: the next start holds every block against its checksum.

Where a volume is read-only nothing is locked: nobody can write.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictor.weights.progress import Progress
from predictor.weights.store.format import Identity, Store, StoreDamaged, owner_of, read_store
from predictor.weights.store.locks import Share, lock, try_lock
from predictor.weights.store.writer import partial_of

logger = logging.getLogger(__name__)

_SUFFIX = ".store"
_MARK = b"in use\n"


def store_file(folder: Path, name: str) -> Path:
    """Returns where in an offload folder the store is of a model, by `rewritten.folder_name`."""
    return folder / f"{name}{_SUFFIX}"


class StoreFolder:
    """Where the stores of one model, in one dtype and one revision, are found and put."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        """Takes the offload folder; touches nothing.

        Args:
            folder: The offload folder.
            identity: Whose weights are served.
        """
        self.folder = folder
        self.identity = identity
        self.file = store_file(folder, identity.name)
        self._use: _Use | None = None

    def find(self, names: Iterable[str], *, verify: bool, progress: Progress) -> Store | None:
        """Returns the store if it is whole and holds these blocks, and holds it as used.

        Args:
            names: Blocks that are needed.
            verify: Whether every block is held against its checksum, whatever was before.
            progress: Is told of blocks that were checked.
        """
        try:
            store = read_store(self.file)
            if store.identity != self.identity:
                raise StoreDamaged(f"{self.file} holds other weights.")
        except FileNotFoundError:
            return None
        except (StoreDamaged, OSError) as error:
            logger.warning("The offload store is not used: %s", error)
            return None
        if set(names) - store.blocks.keys():
            return None
        use = _Use(self.file)
        if not self.file.exists():  # removed for its space before it was seen to be used
            use.end()
            return None
        if verify or use.was_left:
            why = "a process that used it was killed" if use.was_left else "that was asked for"
            logger.info("Checking the offload store %s: %s", self.file, why)
            try:
                _check(store, progress)
            except (StoreDamaged, OSError) as error:
                logger.warning("The offload store is not used: %s", error)
                use.end()
                return None
            use.unmark()
        self.release()
        self._use = use
        return store

    def serve(self) -> None:
        """Marks the store as used, from when requests are answered until `release`."""
        if self._use is not None:
            self._use.mark()

    def release(self) -> None:
        """Ends the use of the store, as a process does that ends as it should."""
        if self._use is not None:
            self._use.end()
            self._use = None

    @contextlib.contextmanager
    def writing(self, *, wait: bool, progress: Progress) -> Iterator[bool]:
        """Gives whether this process alone may write the store now.

        Args:
            wait: Whether to wait for another that writes it.
            progress: Is told of the waiting.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.file, ".lock") as descriptor:
            is_ours = try_lock(descriptor)
            if not is_ours and wait:
                progress.begin("waiting for another pod that writes the offload store", {})
                lock(descriptor, of=self.file)
                is_ours = True
            yield is_ours

    def make_room(self, needed: int, free: int) -> int:
        """Removes unused stores of the same model while space lacks; returns what is free then.

        Args:
            needed: Bytes that are to be written.
            free: Bytes that may be written now.
        """
        unused = {
            file: file.stat().st_size
            for file in self.folder.glob(f"*{_SUFFIX}")
            if file != self.file and owner_of(file) == self.identity.model and _is_unused(file)
        }
        if needed > free + sum(unused.values()):
            return free  # it would be for nothing
        for file in sorted(unused, key=lambda file: file.stat().st_mtime):
            if needed <= free:
                break
            free += _remove_unused(file)
        return free


class _Use:
    """A share in the use of a store, until the process ends; nothing on a read-only volume.

    Attributes:
        was_left: Whether the last one that used it was killed.
    """

    def __init__(self, file: Path) -> None:
        self.was_left = False
        self._share: Share | None = None
        with contextlib.suppress(OSError):
            self._share = share = Share(_beside(file, ".used"))
            with share.alone() as is_alone:
                self.was_left = is_alone and os.fstat(share.descriptor).st_size > 0

    def mark(self) -> None:
        if self._share is None:
            return
        with contextlib.suppress(OSError):
            os.pwrite(self._share.descriptor, _MARK, 0)
            os.fsync(self._share.descriptor)

    def unmark(self) -> None:
        """Takes the mark away if nobody else uses the store."""
        if self._share is None:
            return
        with contextlib.suppress(OSError), self._share.alone() as is_alone:
            if is_alone:
                os.ftruncate(self._share.descriptor, 0)

    def end(self) -> None:
        self.unmark()
        if self._share is not None:
            self._share.close()
            self._share = None


def _check(store: Store, progress: Progress) -> None:
    """Reads every block; raises what is wrong."""
    sizes = {name: block.size for name, block in store.blocks.items()}
    progress.begin("checking the offload store", sizes)
    try:
        store.check_all(store.blocks, progress.done)
    finally:
        progress.end()


def _is_unused(file: Path) -> bool:
    with _locked(file, ".lock") as writing, _locked(file, ".used") as used:
        return try_lock(writing) and try_lock(used)


def _remove_unused(file: Path) -> int:
    """Removes a store and returns its bytes; 0 where somebody uses or writes it."""
    with _locked(file, ".lock") as writing, _locked(file, ".used") as used:
        if not (try_lock(writing) and try_lock(used)):
            return 0
        size = file.stat().st_size
        logger.info("Removing the offload store %s of another revision: space is needed", file)
        file.unlink()
        partial_of(file).unlink(missing_ok=True)
        _beside(file, ".used").unlink(missing_ok=True)
    return size


@contextlib.contextmanager
def _locked(file: Path, suffix: str) -> Iterator[int]:
    """Opens the file to lock beside a store; closing it lets the lock go."""
    descriptor = os.open(_beside(file, suffix), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)
