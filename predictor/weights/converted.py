"""The folder for weights that transformers writes anew to stream them.

That happens to `.bin` checkpoints and to models whose stored tensors are not the served ones (most
mixtures of experts), at every start. transformers names the files by parameter alone, so each
model, revision, dtype and format gets a folder of its own, and a lock lets one process write it at
a time. Each file is replaced at once (safetensors writes a temporary file and renames it), and
every start replaces every file that it then uses: nothing half-written is ever read, and a process
that already streams from the folder is not disturbed. All who use it share a lock, and files are
removed only by who has it alone. The marker says that a folder is whole.
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
from predictor.weights.store.locks import Share, lock

logger = logging.getLogger(__name__)

FORMAT = 2
"""Raised when what these folders hold changes."""

_MARKER = "complete.json"
_SAMPLE = 4096
_STRIDE, _MOST_SAMPLES = 4 * 1024**2, 4096
"""Reading so many pages takes a volume on the network a few seconds."""


class ConvertedCheckpoint:
    """A folder of rewritten weights that this process uses until `close`.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        """Shares the folder's use.

        Args:
            path: The folder.

        Raises:
            OSError: The volume cannot be written.
        """
        self.path = path
        self._use = Share(path.with_name(f"{path.name}.used"))
        self._use.take()

    def remove(self, names: Iterable[str]) -> None:
        """Removes weights that are not needed any more, and the folder with the last of them.

        While another process uses the folder nothing is removed; a later start does it.

        Args:
            names: Parameters, by which transformers names the files.
        """
        with self._use.alone() as is_alone:
            if not is_alone:
                return
            (self.path / _MARKER).unlink(missing_ok=True)
            for name in names:
                (self.path / f"{name}.safetensors").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others are still needed
                self.path.rmdir()

    def close(self) -> None:
        """Ends the use."""
        self._use.close()


@contextlib.contextmanager
def needs_conversion(
    offload_folder: Path | None, checkpoint: Checkpoint, dtype: str
) -> Iterator[ConvertedCheckpoint]:
    """Gives the folder to write to, locked, and marks it complete if nothing is raised.

    It stays in use until it is closed, if nothing is raised.

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
            path.mkdir(exist_ok=True)  # nobody removes it now
            for left in path.glob(".tmp*"):  # by a write that was cut short; we alone write now
                left.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"The offload folder {offload_folder} cannot be written: {error.strerror}."
            ) from None
        yield folder
        (path / _MARKER).write_text(json.dumps({"format": FORMAT, "model": source_of(checkpoint)}))
        undone.pop_all()


def remove_left(path: Path, names: Iterable[str]) -> None:
    """Removes what nobody uses any more: a start was killed when it had put that into a store.

    Args:
        path: A folder of `needs_conversion`. Nothing happens where there is none, or it is
            read-only.
        names: Of the parameters.
    """
    if path.is_dir():
        with contextlib.suppress(OSError), contextlib.closing(ConvertedCheckpoint(path)) as folder:
            folder.remove(names)


def folder_name(checkpoint: Checkpoint, dtype: str) -> str:
    """Returns a name that no other model, revision, dtype or format has.

    A model on the hub is told apart by its commit; local files by their names, sizes and samples of
    their bytes, and not by their times, which are new for every pod that downloads them.
    """
    files = checkpoint.stored.files if checkpoint.stored is not None else ()
    version = checkpoint.revision or [
        _fingerprint(file) for file in (*files, *sorted(checkpoint.path.glob("*.py")))
    ]
    code = importlib.metadata.version("transformers")  # which converts some of them
    identity = [FORMAT, source_of(checkpoint), version, dtype, checkpoint.kind, code]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source_of(checkpoint)).strip("-")[-60:]
    return f"{readable}-{dtype}-{digest}"


def _fingerprint(file: Path) -> list[str | int]:
    """A file's name, its size, and a hash of its ends and of a page of every tensor.

    Of a file that has no header: of a page every few megabytes, and of code all. So weights that
    were trained further, in whatever layers, are other ones.
    """
    stat = file.stat()
    return [file.name, stat.st_size, _sampled(file, stat.st_size, stat.st_mtime_ns)]


@functools.cache
def _sampled(file: Path, size: int, _modified: int) -> str:
    """The hash; a start asks for it several times, and it takes thousands of reads."""
    with file.open("rb") as stream:
        sample = hashlib.sha256(stream.read(_SAMPLE))
        for begin in (*_begins(file, size), max(0, size - _SAMPLE)):
            stream.seek(begin)
            sample.update(stream.read(_SAMPLE))
    return sample.hexdigest()


def _begins(file: Path, size: int) -> list[int]:
    if file.suffix == ".py":
        return list(range(0, size, _SAMPLE))
    if file.suffix != ".safetensors":
        return list(range(0, size, max(_STRIDE, size // _MOST_SAMPLES)))
    start = data_start(file)
    found = sorted(start + entry["data_offsets"][0] for entry in read_header(file).values())
    return found[:: -(-len(found) // _MOST_SAMPLES) or 1]


def source_of(checkpoint: Checkpoint) -> str:
    """Returns the model's id on the hub, or its directory and what its config is.

    KServe mounts every model in the same place, so the directory alone tells nothing.
    """
    if checkpoint.model_id is not None:
        return checkpoint.model_id
    config = json.dumps(checkpoint.config.to_dict(), sort_keys=True, default=str)
    return f"{checkpoint.path.resolve()} {hashlib.sha256(config.encode()).hexdigest()[:8]}"
