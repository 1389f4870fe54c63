"""The folder for weights that transformers writes anew to stream them.

That happens to `.bin` checkpoints and to models whose stored tensors are not the served ones (most
mixtures of experts), at every start. transformers names the files by parameter alone, so each
model, revision, dtype and format gets a folder of its own, and a lock lets one process write it at
a time. Each file is replaced at once (safetensors writes a temporary file and renames it), and
every start replaces every file that it then uses: nothing half-written is ever read, and a process
that already streams from the folder is not disturbed. The marker says that a folder is whole.
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

from predictor.errors import ConfigurationError
from predictor.placement.stored import data_start, read_header
from predictor.weights.checkpoint import Checkpoint
from predictor.weights.locks import lock

logger = logging.getLogger(__name__)

FORMAT = 2
"""Raised when what these folders hold changes."""

_MARKER = "complete.json"
_SAMPLE = 4096
_STRIDE, _MOST_SAMPLES = 4 * 1024**2, 4096
"""Reading so many pages takes a volume on the network a few seconds."""


@contextlib.contextmanager
def rewriting(offload_folder: Path | None, checkpoint: Checkpoint, dtype: str) -> Iterator[Path]:
    """Gives the folder to write to, locked, and marks it complete if nothing is raised.

    Raises:
        ConfigurationError: There is no offload folder, or it cannot be written.
    """
    if offload_folder is None:
        raise ConfigurationError(
            "This checkpoint has to be written anew to be streamed from disk; "
            "set --offload_folder to a folder on a volume that can be written."
        )
    folder = offload_folder / folder_name(checkpoint, dtype)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder.parent / f"{folder.name}.lock").open("w"))
            lock(file.fileno(), of=folder)
            for left in folder.glob(".tmp*"):  # by a write that was cut short; we alone write now
                left.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"The offload folder {offload_folder} cannot be written: {error.strerror}."
            ) from None
        yield folder
        (folder / _MARKER).write_text(
            json.dumps({"format": FORMAT, "model": source_of(checkpoint)})
        )


def remove(folder: Path, files: Iterable[Path]) -> None:
    """Removes files that are not needed any more, and the folder with the last of them.

    Processes that have a file mapped are not disturbed.

    Args:
        folder: A folder that `rewriting` gave.
        files: Of all these only those in it.
    """
    (folder / _MARKER).unlink(missing_ok=True)
    for file in files:
        if file.parent == folder:
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others are still needed
        folder.rmdir()


def remove_left(folder: Path, names: Iterable[str]) -> None:
    """Removes what a start wrote anew that was killed when it had put it into a store.

    Args:
        folder: A folder that `rewriting` gave; nothing happens where there is none.
        names: Parameters, by which transformers names the files.
    """
    if folder.is_dir():
        remove(folder, [folder / f"{name}.safetensors" for name in names])


def folder_name(checkpoint: Checkpoint, dtype: str) -> str:
    """Returns a name that no other model, revision, dtype or format has.

    A model on the hub is told apart by its commit; local files by their names, sizes and samples of
    their bytes, and not by their times, which are new for every pod that downloads them.
    """
    files = checkpoint.stored.files if checkpoint.stored is not None else ()
    version = checkpoint.revision or [_fingerprint(file) for file in files]
    code = importlib.metadata.version("transformers")  # which converts some of them
    identity = [FORMAT, source_of(checkpoint), version, dtype, checkpoint.kind, code]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source_of(checkpoint)).strip("-")[-60:]
    return f"{readable}-{dtype}-{digest}"


def _fingerprint(file: Path) -> list[str | int]:
    """A file's name, its size, and a hash of its ends and of a page of every tensor.

    Of a file that has no header: of a page every few megabytes. So weights that were trained
    further, in whatever layers, are other ones.
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
