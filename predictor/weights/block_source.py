"""Decides from where streamed blocks are read: the offload store, or the checkpoint in place.

Experts that are read one by one are in the same store; see `expert_source` for the other ways.

1. If there is a store with the blocks, it is used.
2. Otherwise the first process writes a store (`store.packing`), if one is wanted and pays.
3. A process that cannot wait for the writer, or whose volume is full, reads the checkpoint in
   place. If that is stored in another dtype, tensors are cast while they are read.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError

from predictor.checkpoint.remote_files import require_ranges
from predictor.errors import ConfigurationError, reason_of
from predictor.metrics import WeightMetrics
from predictor.weights.converted import ConvertedCheckpoint, conversions, remove_abandoned
from predictor.weights.direct_io import BlockReader, open_block_reader
from predictor.weights.experts.extents import ExpertExtent, Extents, in_store
from predictor.weights.experts.reader import read_expert
from predictor.weights.extents import (
    BlockExtent,
    BlockParameters,
    CheckpointIndex,
    find_in_checkpoint,
)
from predictor.weights.offload_config import OffloadConfig
from predictor.weights.progress import Progress
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import Store
from predictor.weights.store.packing import VolumeFull, is_faster, write_store

logger = logging.getLogger(__name__)

_REMEDY = (
    "; set --offload_folder to a folder on a volume that can be written, and --offload_store to "
    "auto."
)


class BlockSourceResolver:
    """The source of the streamed blocks, and of experts, of one start.

    Attributes:
        names: The blocks, in execution order, without the experts.
        store: The store that holds them; None while there is none.
        converted: The folder that loading wrote weights to; None if it wrote none.
    """

    def __init__(
        self,
        offload: OffloadConfig,
        folder: StoreFolder | None,
        blocks: BlockParameters,
        progress: Progress,
        metrics: WeightMetrics,
        experts: BlockParameters = MappingProxyType({}),
        further_names: Collection[str] = (),
    ) -> None:
        """Read nothing yet.

        Args:
            offload: The offload configuration.
            folder: The model's store folder; None without an offload folder, or without stores.
            blocks: The blocks to stream, in execution order.
            progress: Counts blocks that are checked and written.
            metrics: Counts stores that were found and written.
            experts: The tensors of each expert that is read by itself.
            further_names: The names of the model's parameters that hold these experts, and of those
                that share their weights with others.
        """
        self.store: Store | None = None
        self.converted: ConvertedCheckpoint | None = None
        self._offload = offload
        self._folder = folder
        self.names = tuple(blocks)
        self._experts, self._further_names = experts, further_names
        self._blocks: BlockParameters = {**blocks, **experts}
        self._progress = progress
        self._metrics = metrics
        self._may_write = False
        self._is_unsure = False
        self._reason: str | None = None  # why there is no store

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Look for a store, and hold the write lock while this start may write one."""
        with contextlib.ExitStack() as stack:
            if self._folder is not None and self._blocks:
                self._hash_if_needed(self._folder)
                self._find(self._folder)
                if self.store is None and self._lock(self._folder, stack):
                    self._find(self._folder)  # another process may have written it meanwhile
                if self.store is not None:
                    stack.close()  # other processes need not wait for the rest of this start
                    self._metrics.store_hits.inc()
                    paths = conversions(self._folder.folder, self._folder.identity.name)
                    names = chain.from_iterable(self._blocks.values())
                    remove_abandoned(paths, chain(names, self._further_names))
            yield

    def resolve(
        self,
        blocks: BlockParameters,
        index: CheckpointIndex,
        experts: Mapping[str, ExpertExtent] = MappingProxyType({}),
        *,
        spent: int = 0,
    ) -> Extents:
        """Return the extents, after writing a store if one is wanted.

        Args:
            blocks: The blocks, as the loaded model has them.
            index: The location of each parameter on disk.
            experts: The experts, where they can be read without a store.
            spent: Bytes of the offload volume that loading has taken already.

        Returns:
            The extents.

        Raises:
            ConfigurationError: There is no store, and the settings require one, or the checkpoint
                cannot be read in place.
        """
        try:
            return self._resolve(blocks, index, experts, spent)
        finally:
            self._blocks, self._experts = {}, {}  # some objects for each expert

    def _resolve(
        self,
        blocks: BlockParameters,
        index: CheckpointIndex,
        experts: Mapping[str, ExpertExtent],
        spent: int,
    ) -> Extents:
        if self.store is None and self._blocks:
            in_place = find_in_checkpoint(blocks, index)
            if self._may_write and not self._is_unsure and self._folder is not None:
                free = self._offload.free - spent
                self._write(self._folder, blocks, index, experts, free, in_place)
            if self.store is None and in_place is None:
                raise ConfigurationError(
                    "The checkpoint has to be written anew to be streamed from disk"
                    + (f", and {self._reason}." if self._reason else _REMEDY)
                )
            if self.store is None:
                if self._offload.remote is not None:
                    self._offload.remote.complete()
                return Extents(in_place or (), experts)
        if self.store is None:
            return Extents()
        stored = self.store.blocks
        return Extents(
            tuple(stored[name] for name in self.names),
            {name: in_store(stored[name]) for name in self._experts},
        )

    @property
    def warmup_cache_file(self) -> Path | None:
        """The file of the model's warm-up cache; None without a store folder."""
        if self._folder is None:
            return None
        return self._folder.file.with_suffix(".known.json")

    def serve(self) -> None:
        """Mark the store as used by a process that serves, and hash its weights if they are not."""
        if self._folder is not None:
            self._folder.serve()
            if self.store is not None or self._is_unsure:
                self._folder.weights.hash_beside_serving()

    def release(self) -> None:
        """End the use of the store, and of converted weights."""
        if self._folder is not None:
            self._folder.weights.stop()
            self._folder.release()
        if self.converted is not None:
            self.converted.close()
        if self._offload.remote is not None:
            self._offload.remote.close()

    def _hash_if_needed(self, folder: StoreFolder) -> None:
        """Hash the weights if a store may hold them and there is no other way to serve them."""
        if not folder.needs_hash():
            return
        if self._offload.needs_store or self._offload.store == "always":
            folder.weights.hash(self._progress)
        else:
            self._is_unsure = True
            logger.info(
                "The weights' files are not those that %s was written from; they are hashed beside "
                "serving, and until the next start blocks are read from the checkpoint",
                folder.file,
            )

    def _find(self, folder: StoreFolder) -> None:
        if self._is_unsure:
            return
        store = folder.find(self._blocks, verify=self._offload.verify, progress=self._progress)
        self.store = store if store is not None and self._has_all_parameters(store) else None
        if self.store is not None:
            folder.weights.keep_named()
            logger.info("Offload store %s: %d blocks", folder.file, len(self.store.blocks))

    def _has_all_parameters(self, store: Store) -> bool:
        """Return whether the store's parameters have the names and shapes of the model's."""
        return all(
            {tensor.name: tensor.shape for tensor in store.blocks[name].tensors}
            == {key: tuple(parameter.shape) for key, parameter in parameters.items()}
            for name, parameters in self._blocks.items()
        )

    def _lock(self, folder: StoreFolder, stack: contextlib.ExitStack) -> bool:
        try:
            writing = folder.writing(wait=self._offload.needs_store, progress=self._progress)
            self._may_write = stack.enter_context(writing)
        except PermissionError:
            self._do_without_store(
                folder,
                f"holds a store of another user, and this process is user {os.geteuid()}; give "
                "each user an offload folder",
            )
        except OSError as error:
            self._do_without_store(folder, f"cannot be written: {error.strerror}")
        return self._may_write

    def _write(
        self,
        folder: StoreFolder,
        blocks: BlockParameters,
        index: CheckpointIndex,
        experts: Mapping[str, ExpertExtent],
        free: int,
        in_place: Sequence[BlockExtent] | None,
    ) -> None:
        """Write the store if it is wanted, or pays."""
        is_as_served = in_place is not None and not any(block.cast_from for block in in_place)
        is_wanted = self._offload.store == "always" or self._offload.needs_store or not is_as_served
        try:
            if not is_wanted and not (in_place and is_faster(folder.file, in_place)):
                return
            with open_block_reader() as reader:
                read = partial(self._read_expert, reader)
                fills = {name: partial(read, extent) for name, extent in experts.items()}
                parameters, remote = {**blocks, **self._experts}, self._offload.remote
                progress = self._progress
                write_store(
                    folder, parameters, index, fills, free=free, progress=progress, remote=remote
                )
        except VolumeFull as error:
            self._do_without_store(folder, str(error))
        except (OSError, SafetensorError) as error:
            self._do_without_store(folder, f"cannot be written: {reason_of(error)}")
        else:
            self._metrics.store_builds.inc()
            self._find(folder)

    def _read_expert(self, reader: BlockReader, expert: ExpertExtent, into: torch.Tensor) -> None:
        """Read an expert from the checkpoint, whose file is fetched if it is not there."""
        spans = ((part.file, part.begin, part.begin + part.length) for part in expert.ranges)
        require_ranges(self._offload.remote, spans)
        read_expert(reader, expert, into)

    def _do_without_store(self, folder: StoreFolder, reason: str) -> None:
        """Log the reason, or raise it if the settings require a store."""
        self._reason = f"the offload volume at {folder.folder} {reason}"
        sentence = f"T{self._reason[1:]}."
        if self._offload.store == "always":
            raise ConfigurationError(sentence)
        logger.warning("%s Blocks are read from the checkpoint instead.", sentence)
