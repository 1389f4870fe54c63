"""The folder of a converted checkpoint: weights that transformers writes anew to stream them.

transformers converts `.bin` checkpoints, and models whose stored tensors are not the served ones
(most mixtures of experts), at every start. It names the files by parameter alone, so each model,
revision, dtype and format gets a folder of its own.

- A lock lets one process write the folder at a time.
- safetensors writes a temporary file and renames it, and every start replaces every file that it
  then uses. So no process reads a partial file, and processes that stream from the folder go on.
- Processes that use the folder hold a shared lock. Files are removed under an exclusive lock only.
- A marker file says that the folder is complete.
- Local files that were edited or downloaded again have a folder of their own. So a process that
  streams from the folder of the old weights never reads new ones. Folders that no process uses are
  removed by the next start.

Whether a checkpoint needs this is measured in `profiling`, and decided in `loader`.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.safetensors_header import data_start, read_header
from predictor.errors import ConfigurationError
from predictor.weights.store.locks import OWNER_ONLY, SharedLock, lock
from predictor.weights.store.sources import Sources

logger = logging.getLogger(__name__)

FORMAT = 3
"""The version of the folder's content."""

_MARKER = "complete.json"
_SAMPLE = 4096
_STRIDE, _MOST_SAMPLES = 4 * 1024**2, 4096
"""Bytes between samples, and most samples of a file. A network volume reads that many pages in a
few seconds."""


class ConvertedCheckpoint:
    """A folder of converted weights that this process uses until `close`.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        """Acquire the shared lock of the folder.

        Args:
            path: The folder.

        Raises:
            OSError: The volume cannot be written.
        """
        self.path = path
        self._lock = SharedLock(path.with_name(f"{path.name}.used"))
        self._lock.acquire()

    def remove(self, names: Iterable[str]) -> None:
        """Remove weights that are no longer needed, and the folder once it is empty.

        If another process uses the folder, nothing is removed. A later start will remove it.

        Args:
            names: Parameters, after which transformers names the files.
        """
        with self._lock.try_exclusive() as is_exclusive:
            if not is_exclusive:
                return
            (self.path / _MARKER).unlink(missing_ok=True)
            for name in names:
                (self.path / f"{name}.safetensors").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other parameters are still needed
                self.path.rmdir()

    def remove_all(self) -> None:
        """Remove the folder if no other process uses it."""
        with self._lock.try_exclusive() as is_exclusive:
            if is_exclusive:
                shutil.rmtree(self.path)

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


@contextlib.contextmanager
def open_conversion_folder(
    offload_folder: Path | None, checkpoint: Checkpoint, dtype: str
) -> Iterator[ConvertedCheckpoint]:
    """Yield the folder, locked for writing, and mark it complete if nothing is raised.

    Without an error the folder stays in use until the caller closes it.

    Raises:
        ConfigurationError: There is no offload folder, or it cannot be written.
    """
    if offload_folder is None:
        raise ConfigurationError(
            "This checkpoint has to be written anew to be streamed from disk; "
            "set --offload_folder to a folder on a volume that can be written."
        )
    path = offload_folder / conversion_name(checkpoint, dtype)
    with contextlib.ExitStack() as locked, contextlib.ExitStack() as undone:
        try:
            offload_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock_file = offload_folder / f"{folder_name(checkpoint, dtype)}.lock"
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
            locked.callback(os.close, descriptor)
            lock(descriptor, of=path)
            folder = ConvertedCheckpoint(path)
            undone.callback(folder.close)
            # Under the shared lock no process removes it.
            path.mkdir(exist_ok=True, mode=0o700)
            others = conversions(offload_folder, folder_name(checkpoint, dtype))
            _remove_unused(other for other in others if other != path)
            for partial in path.glob(".tmp*"):  # of a killed process: this one holds the lock
                partial.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"The offload folder {offload_folder} cannot be written: {error.strerror}."
            ) from None
        yield folder
        marker = {"format": FORMAT, "model": model_identity(checkpoint)}
        (path / _MARKER).write_text(json.dumps(marker))
        undone.pop_all()


def remove_abandoned(paths: Iterable[Path], names: Iterable[str]) -> None:
    """Remove the weights of starts that were killed after they had copied them into a store.

    Args:
        paths: The folders. Nothing happens to those that are read-only.
        names: The parameters.
    """
    all_names = list(names)
    for path in paths:
        with contextlib.suppress(OSError), contextlib.closing(ConvertedCheckpoint(path)) as folder:
            folder.remove(all_names)


def conversions(offload_folder: Path, name: str) -> list[Path]:
    """Return the folders with converted weights of one `folder_name`."""
    return [path for path in offload_folder.glob(f"{glob.escape(name)}*") if path.is_dir()]


def _remove_unused(paths: Iterable[Path]) -> None:
    """Remove folders that no process uses; this process uses its own."""
    for path in paths:
        with contextlib.suppress(OSError), contextlib.closing(ConvertedCheckpoint(path)) as folder:
            folder.remove_all()


def conversion_name(checkpoint: Checkpoint, dtype: str) -> str:
    """Return a name that no other version of the files has either, unlike `folder_name`."""
    name = folder_name(checkpoint, dtype)
    if checkpoint.revision is not None or checkpoint.stored is None:
        return name
    stamps = Sources.of(checkpoint.stored.files, None).stamps
    return f"{name}-{_digest({file: stamp.key for file, stamp in stamps.items()})[:8]}"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def folder_name(checkpoint: Checkpoint, dtype: str) -> str:
    """Return a name that no other model, revision, dtype or format has.

    A model on the hub is identified by its commit. Local files are identified by their names, sizes
    and samples of their bytes. Their times are new for every pod that downloads them. Versions that
    differ outside of the samples share the name. They are told apart by `store.served_weights`.
    """
    files = checkpoint.stored.files if checkpoint.stored is not None else ()
    read_whole = (*checkpoint.path.glob("*.py"), *checkpoint.path.glob("*.index.json"))
    version = checkpoint.revision or [_fingerprint(file) for file in (*files, *sorted(read_whole))]
    code = importlib.metadata.version("transformers")  # it converts some checkpoints
    identity = [FORMAT, model_identity(checkpoint), version, dtype, checkpoint.kind, code]
    digest = _digest(identity)[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model_identity(checkpoint)).strip("-")[-60:]
    return f"{readable}-{dtype}-{digest}"


def _fingerprint(file: Path) -> list[str | int]:
    """Return a file's name, its size, and a hash of samples.

    The samples are both ends and a page of every tensor. For a file without a header they are a
    page every few megabytes, and for code and indices all of it. So further training of any layer
    changes the fingerprint, and an edit of single values may not.
    """
    stat = file.stat()
    return [file.name, stat.st_size, _sample_hash(file, stat.st_size, stat.st_mtime_ns)]


@functools.cache
def _sample_hash(file: Path, size: int, _modified: int) -> str:
    """Return the hash, cached: a start needs it several times, and it takes thousands of reads."""
    with file.open("rb") as stream:
        sample = hashlib.sha256(stream.read(_SAMPLE))
        for begin in (*_sample_starts(file, size), max(0, size - _SAMPLE)):
            stream.seek(begin)
            sample.update(stream.read(_SAMPLE))
    return sample.hexdigest()


def _sample_starts(file: Path, size: int) -> list[int]:
    if file.suffix in (".py", ".json"):
        return list(range(0, size, _SAMPLE))
    if file.suffix != ".safetensors":
        return list(range(0, size, max(_STRIDE, size // _MOST_SAMPLES)))
    start = data_start(file)
    starts = sorted(start + entry["data_offsets"][0] for entry in read_header(file).values())
    return starts[:: -(-len(starts) // _MOST_SAMPLES) or 1]


def model_identity(checkpoint: Checkpoint) -> str:
    """Return the model's id on the hub, or its directory and a hash of its config.

    KServe mounts every model in the same place, so the directory alone does not identify it.
    """
    if checkpoint.model_id is not None:
        return checkpoint.model_id
    config = json.dumps(checkpoint.config.to_dict(), sort_keys=True, default=str)
    return f"{checkpoint.path.resolve()} {hashlib.sha256(config.encode()).hexdigest()[:8]}"
