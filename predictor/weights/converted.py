"""The folder of a converted checkpoint: weights that transformers writes anew to stream them.

transformers converts `.bin` checkpoints, and models whose stored tensors are not the served ones
(most mixtures of experts), at every start. It names the files by parameter alone, so each model,
revision, dtype and format gets a folder of its own.

- A lock lets one process write the folder at a time.
- safetensors writes a temporary file and renames it, and every start replaces every file that it
  then uses. So no process reads a partial file, and processes that stream from the folder go on.
- Processes that use the folder hold a shared lock. Files are removed under an exclusive lock only.
- A marker file says that the folder is complete.

Whether a checkpoint needs this is measured in `profiling`, and decided in `loader`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.checkpoint.safetensors_header import data_start, read_header
from predictor.errors import ConfigurationError
from predictor.weights.store.locks import SharedLock, lock

logger = logging.getLogger(__name__)

FORMAT = 2
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
    path = offload_folder / folder_name(checkpoint, dtype)
    with contextlib.ExitStack() as locked, contextlib.ExitStack() as undone:
        try:
            offload_folder.mkdir(parents=True, exist_ok=True)
            file = locked.enter_context((offload_folder / f"{path.name}.lock").open("w"))
            lock(file.fileno(), of=path)
            folder = ConvertedCheckpoint(path)
            undone.callback(folder.close)
            path.mkdir(exist_ok=True)  # under the shared lock no process removes it
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


def remove_abandoned(path: Path, names: Iterable[str]) -> None:
    """Remove the weights of a start that was killed after it had copied them into a store.

    Args:
        path: The folder. If it does not exist or is read-only, nothing happens.
        names: The parameters.
    """
    if path.is_dir():
        with contextlib.suppress(OSError), contextlib.closing(ConvertedCheckpoint(path)) as folder:
            folder.remove(names)


def folder_name(checkpoint: Checkpoint, dtype: str) -> str:
    """Return a name that no other model, revision, dtype or format has.

    A model on the hub is identified by its commit. Local files are identified by their names, sizes
    and samples of their bytes. Their times are new for every pod that downloads them.
    """
    files = checkpoint.stored.files if checkpoint.stored is not None else ()
    version = checkpoint.revision or [
        _fingerprint(file) for file in (*files, *sorted(checkpoint.path.glob("*.py")))
    ]
    code = importlib.metadata.version("transformers")  # it converts some checkpoints
    identity = [FORMAT, model_identity(checkpoint), version, dtype, checkpoint.kind, code]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model_identity(checkpoint)).strip("-")[-60:]
    return f"{readable}-{dtype}-{digest}"


def _fingerprint(file: Path) -> list[str | int]:
    """Return a file's name, its size, and a hash of samples.

    The samples are both ends and a page of every tensor. For a file without a header they are a
    page every few megabytes, and for code all of it. So further training of any layer changes the
    fingerprint.
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
    if file.suffix == ".py":
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
