"""SHA-256 of weight files: computed once for a file, and kept in the offload folder by its stamp.

Hashing bypasses nothing and leaves nothing: pages are read ahead while the pages before them are
hashed, and dropped afterwards. Which files have to be hashed is decided in `served_weights`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from predictor.weights.store.atomic import write_atomically
from predictor.weights.store.sources import Stamp

logger = logging.getLogger(__name__)

FILE = "digests.json"

_MOST = 4096
"""Most files whose digests are kept: those of many models, in half a MiB."""

_PIECE = 1024**2
"""Bytes that are read and hashed at a time. `hashlib` releases the interpreter's lock for them."""

_BLOB = re.compile(r"[0-9a-f]{64}")

Digests = Mapping[str, str]
"""SHA-256 in hexadecimal of each file, by name."""


class HashingStopped(Exception):
    """Hashing was stopped before its end."""


class KnownDigests:
    """The digests of files that were hashed before, by their stamps."""

    def __init__(self, folder: Path | None) -> None:
        """Read the file of known digests.

        Args:
            folder: The offload folder; None keeps nothing.
        """
        self._file = None if folder is None else folder / FILE
        self._digests = self._read()

    def of(self, stamps: Mapping[str, Stamp]) -> Digests | None:
        """Return the digests of all files of these stamps; None if one is unknown."""
        if not all(stamp.key in self._digests for stamp in stamps.values()):
            return None
        return {name: self._digests[stamp.key] for name, stamp in stamps.items()}

    def keep(self, stamps: Mapping[str, Stamp], digests: Digests) -> None:
        """Keep digests, the newest last; the oldest are forgotten."""
        entries = {stamps[name].key: digest for name, digest in digests.items()}
        others = {key: value for key, value in self._read().items() if key not in entries}
        self._digests = dict([*others.items(), *entries.items()][-_MOST:])
        if self._file is None:
            return
        try:
            write_atomically(self._file, json.dumps(self._digests))
        except OSError as error:
            logger.info("%s cannot be written: %s", self._file, error.strerror)

    def _read(self) -> dict[str, str]:
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_bytes())
            return {str(key): str(digest) for key, digest in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            logger.info("%s cannot be read (%s): files are hashed again", self._file, error)
            return {}


def blob_digest(file: Path) -> str | None:
    """Return the digest that names a file of the hub's cache; None for any other file.

    A snapshot there links to ``blobs/SHA-256`` for each large file
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name) else None


def hash_files(
    files: Mapping[str, Path],
    *,
    threads: int,
    share: float = 1.0,
    done: Callable[[str], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Digests:
    """Return the digests of files, each file hashed by one thread.

    Args:
        files: The files, by name.
        threads: Most files at a time.
        share: The share of the time in which a thread reads and hashes; it sleeps for the rest.
        done: Called with the name of each hashed file.
        is_stopped: Whether to stop.

    Raises:
        HashingStopped: It was stopped.
        OSError: A file cannot be read.
    """

    def digest(name: str) -> str:
        value = _hash(files[name], share, is_stopped)
        done(name)
        return value

    with ThreadPoolExecutor(max(1, min(threads, len(files))), "hashing") as pool:
        return dict(zip(files, pool.map(digest, files), strict=True))


def _hash(file: Path, share: float, is_stopped: Callable[[], bool]) -> str:
    digest, piece = hashlib.sha256(), bytearray(_PIECE)
    with file.open("rb", buffering=0) as stream:
        descriptor, start = stream.fileno(), 0
        while not is_stopped():
            began = time.perf_counter()
            count = os.preadv(descriptor, [piece], start)
            if count == 0:
                return digest.hexdigest()
            os.posix_fadvise(descriptor, start + count, _PIECE, os.POSIX_FADV_WILLNEED)
            digest.update(memoryview(piece)[:count])
            os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_DONTNEED)
            start += count
            if share < 1:
                time.sleep((time.perf_counter() - began) * (1 / share - 1))
    raise HashingStopped
