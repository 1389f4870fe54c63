"""The folder for weights that transformers writes anew to stream them.

That happens to `.bin` checkpoints and to models whose stored tensors are not the served ones (most
mixtures of experts). transformers names the files by parameter alone, so each model, revision,
dtype and format gets a folder of its own; a lock keeps two pods from writing it at once, and what
has no marker of completeness is thrown away.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from predictor.errors import ConfigurationError
from predictor.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when what these folders hold changes."""

_MARKER = "complete.json"


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f"{folder.name}.lock").open("w")
    except OSError as error:
        raise ConfigurationError(
            f"The offload folder {offload_folder} cannot be written: {error.strerror}."
        ) from None
    with lock:
        _wait_for(lock.fileno(), folder)
        _begin(folder)
        yield folder
        (folder / _MARKER).write_text(json.dumps({"format": FORMAT, "model": _source(checkpoint)}))


def folder_name(checkpoint: Checkpoint, dtype: str) -> str:
    """Returns a name that no other model, revision, dtype or format has."""
    files = checkpoint.stored.files if checkpoint.stored is not None else ()
    identity = [
        FORMAT,
        _source(checkpoint),
        checkpoint.revision,
        dtype,
        checkpoint.kind,
        [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", _source(checkpoint)).strip("-")[-60:]
    return f"{readable}-{dtype}-{digest}"


def _source(checkpoint: Checkpoint) -> str:
    return checkpoint.model_id or str(checkpoint.path.resolve())


def _wait_for(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("Waiting for another process that writes %s", folder)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _begin(folder: Path) -> None:
    """Throws away what an interrupted write left; a complete folder is written over in place.

    Each file is replaced at once (safetensors writes a new inode), so a process that streams from
    a complete folder is not disturbed by another start that writes the same tensors again.
    """
    marker = folder / _MARKER
    if not marker.exists():
        shutil.rmtree(folder)
        folder.mkdir()
    marker.unlink(missing_ok=True)
