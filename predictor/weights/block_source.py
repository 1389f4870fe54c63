"""Decides where the blocks that are streamed are read from: the store, or the checkpoint in place.

A store serves where there is one. Without one the first to come writes it, if that is wanted and
pays; whoever cannot wait, or finds the volume full, reads the checkpoint in place, as long as that
is stored as it is served. What is left, Accelerate's own hooks stream.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError

from predictor.errors import ConfigurationError, reason_of
from predictor.metrics import WeightMetrics
from predictor.weights.converted import ConvertedCheckpoint, remove_left
from predictor.weights.extents import Block, in_place
from predictor.weights.progress import Progress
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import Store
from predictor.weights.store.packing import Index, Parameters, VolumeFull, is_faster, pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OffloadConfig:
    """What the settings, the pod and the model say about parts on disk.

    Attributes:
        folder: The offload folder; None without one.
        free: Bytes that may be written there.
        store: ``"auto"``, ``"always"`` or ``"never"``.
        verify: Whether a store's blocks are held against their checksums at every start.
        rewritten: Whether transformers writes parts on disk anew, see `rewritten`.
        cast: Whether the checkpoint is stored in another dtype than it is served in.
    """

    folder: Path | None = None
    free: int = 0
    store: str = "auto"
    verify: bool = False
    rewritten: bool = False
    cast: bool = False

    @property
    def needs_store(self) -> bool:
        """Whether the checkpoint's bytes are not those that are served."""
        return self.rewritten or self.cast


class BlockSourceResolver:
    """Where the streamed blocks of one start come from.

    Attributes:
        names: The blocks, in execution order.
        store: The store that holds them; None while there is none.
        rewritten: The folder that loading wrote weights to; None where it wrote none.
    """

    def __init__(
        self,
        offload: OffloadConfig,
        folder: StoreFolder | None,
        streamed: Parameters,
        progress: Progress,
        metrics: WeightMetrics,
    ) -> None:
        """Takes what is known before anything is read.

        Args:
            offload: What is wanted.
            folder: The model's place on the offload volume; None without one, or if not wanted.
            streamed: The blocks to stream, in execution order, of the model on the meta device.
            progress: Is told how far checking and writing are.
            metrics: Counts stores that were found and written.
        """
        self.store: Store | None = None
        self.rewritten: ConvertedCheckpoint | None = None
        self._offload = offload
        self._folder = folder
        self.names = tuple(streamed)
        self._streamed = streamed
        self._progress = progress
        self._metrics = metrics
        self._may_write = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Looks for a store, and keeps others from writing one as long as this may be going to."""
        with contextlib.ExitStack() as stack:
            if self._folder is not None and self.names:
                self._find(self._folder)
                if self.store is None and self._lock(self._folder, stack):
                    self._find(self._folder)  # another may have written it meanwhile
                if self.store is not None:
                    stack.close()  # others need not wait for what this start still does
                    self._metrics.store_hits.inc()
                    left = self._folder.folder / self._folder.identity.name
                    remove_left(left, chain.from_iterable(self._streamed.values()))
            yield

    def blocks(
        self, wanted: Parameters, index: Index, *, spent: int = 0
    ) -> tuple[Block, ...] | None:
        """Returns the blocks to stream, after writing a store if need be; None if they cannot be.

        Args:
            wanted: The parameters of each block.
            index: Where transformers found each parameter on disk.
            spent: Bytes of the offload volume that loading has taken already.

        Raises:
            ConfigurationError: A store has to be written, by the settings, and cannot be.
        """
        if self.store is None:
            found = in_place(wanted, index)
            if self._may_write and self._folder is not None:
                free = self._offload.free - spent
                self._write(self._folder, wanted, index, free, found)
            if self.store is None:
                return found
        return tuple(self.store.blocks[name] for name in self.names)

    @property
    def known_file(self) -> Path | None:
        """Where facts about the model are kept; None where it has no place on a volume."""
        if self._folder is None:
            return None
        return self._folder.file.with_suffix(".known.json")

    def serve(self) -> None:
        """Marks the store as used by a process that serves."""
        if self._folder is not None:
            self._folder.serve()

    def release(self) -> None:
        """Ends the use of the store, and of what was written anew."""
        if self._folder is not None:
            self._folder.release()
        if self.rewritten is not None:
            self.rewritten.close()

    def _find(self, folder: StoreFolder) -> None:
        verify = self._offload.verify
        found = folder.find(self.names, verify=verify, progress=self._progress)
        self.store = found if found is not None and self._fits(found) else None
        if self.store is not None:
            logger.info("Offload store %s: %d blocks", folder.file, len(self.store.blocks))

    def _fits(self, store: Store) -> bool:
        """Whether the store has the parameters that this model has."""
        return all(
            {tensor.name: tensor.shape for tensor in store.blocks[name].tensors}
            == {key: tuple(parameter.shape) for key, parameter in parameters.items()}
            for name, parameters in self._streamed.items()
        )

    def _lock(self, folder: StoreFolder, stack: contextlib.ExitStack) -> bool:
        try:
            writing = folder.writing(wait=self._offload.needs_store, progress=self._progress)
            self._may_write = stack.enter_context(writing)
        except OSError as error:
            self._complain(folder, f"cannot be written: {error.strerror}")
        return self._may_write

    def _write(
        self,
        folder: StoreFolder,
        wanted: Parameters,
        index: Index,
        free: int,
        found: Sequence[Block] | None,
    ) -> None:
        """Writes the store where that is wanted, or pays."""
        is_wanted = self._offload.store == "always" or self._offload.needs_store or found is None
        try:
            if not is_wanted and not is_faster(folder.folder, found or ()):
                return
            pack(folder, wanted, index, free=free, progress=self._progress)
        except VolumeFull as error:
            self._complain(folder, str(error))
        except (OSError, SafetensorError) as error:
            self._complain(folder, f"cannot be written: {reason_of(error)}")
        else:
            self._metrics.store_builds.inc()
            self._find(folder)

    def _complain(self, folder: StoreFolder, what: str) -> None:
        sentence = f"The offload volume at {folder.folder} {what}."
        if self._offload.store == "always":
            raise ConfigurationError(sentence)
        logger.warning("%s Blocks are read from the checkpoint instead.", sentence)
