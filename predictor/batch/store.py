"""The directory of files and batches: a folder for each API key, readable by the process alone.

A record is a JSON file beside its data, written whole or not at all, so a process that was killed
leaves nothing that another could not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from predictor.batch.records import BatchRecord, FileRecord, Status, new_id
from predictor.errors import BodyTooLarge, ConfigurationError, RequestError
from predictor.sentences import quote
from predictor.weights.store.atomic import write_atomically

SECONDS_OF_A_WINDOW = 24 * 3600
_SECONDS_OF_A_DAY = 24 * 3600
_FILE, _BATCH = re.compile(r"file-[0-9a-f]{24}"), re.compile(r"batch_[0-9a-f]{24}")
_OWNER = re.compile(r"[0-9a-f]{32}")


class NotStored(RequestError):
    """The API key has no file or batch of this id."""

    http_status = 404
    grpc_code = "NOT_FOUND"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """The bounds of what is kept.

    Attributes:
        bytes: Most bytes of all files.
        days: Days after which a file or a batch is removed.
    """

    bytes: int
    days: int


class BatchStore:
    """All files and batches of a directory."""

    def __init__(self, folder: Path, limits: StoreLimits) -> None:
        """Make the directory, if there is none.

        Raises:
            ConfigurationError: It cannot be written.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / ".writable").touch(0o600)
        except OSError as error:
            raise ConfigurationError(
                f"batch_dir {folder} cannot be written: {error.strerror}."
            ) from None
        self.limits = limits
        self._folder = folder

    def of(self, authorization: str) -> OwnedStore:
        """Return what belongs to the API key in an ``Authorization`` header; empty without one."""
        key = authorization.partition(" ")[2].strip().encode("utf-8", "surrogateescape")
        return self._owned(hashlib.sha256(b"owner of batches:" + key).hexdigest()[:32])

    def owners(self) -> Iterator[OwnedStore]:
        """Yield what belongs to each key that has anything."""
        for folder in sorted(self._folder.iterdir()):
            if _OWNER.fullmatch(folder.name):
                yield self._owned(folder.name)

    def used(self) -> int:
        """Return the bytes of all files and results."""
        return sum(file.stat().st_size for file in self._folder.glob("*/*") if file.is_file())

    def check_room(self, size: int) -> None:
        """Return if there is room for so many bytes more.

        Raises:
            BodyTooLarge: There is none.
        """
        if self.used() + size > self.limits.bytes:
            raise BodyTooLarge(
                f"Files and results may have {self.limits.bytes} bytes together (batch_dir_size), "
                "and there is no room for this one; delete some."
            )

    def remove_old(self) -> None:
        """Remove what is older than the limit."""
        oldest = time.time() - self.limits.days * _SECONDS_OF_A_DAY
        for file in self._folder.glob("*/*"):
            if file.stat().st_mtime < oldest:
                file.unlink(missing_ok=True)

    def _owned(self, owner: str) -> OwnedStore:
        return OwnedStore(self, self._folder / owner)


class OwnedStore:
    """The files and batches of one API key.

    Attributes:
        owner: A digest of the key.
    """

    def __init__(self, store: BatchStore, folder: Path) -> None:
        """Take a folder, which is made when it is needed."""
        self.owner = folder.name
        self._store, self._folder = store, folder

    def add_file(self, content: BinaryIO, filename: str, purpose: str) -> FileRecord:
        """Keep a copy of a file, and return its record.

        Raises:
            BodyTooLarge: There is no room for it.
        """
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        self._store.check_room(size)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file_id = new_id("file-")
        with open(self.data(file_id), "xb", opener=_private) as data:
            shutil.copyfileobj(content, data)
        return self._record(file_id, size, filename, purpose)

    def adopt(self, path: Path, filename: str) -> FileRecord | None:
        """Make a file of results that is there one of the files; None if it is empty."""
        size = path.stat().st_size
        if not size:
            path.unlink()
            return None
        file_id = new_id("file-")
        path.replace(self.data(file_id))
        return self._record(file_id, size, filename, "batch_output")

    def _record(self, file_id: str, size: int, filename: str, purpose: str) -> FileRecord:
        now = int(time.time())
        expires = now + self._store.limits.days * _SECONDS_OF_A_DAY
        record = FileRecord(file_id, size, now, expires, filename, purpose)
        write_atomically(self._folder / f"{file_id}.json", json.dumps(asdict(record)))
        return record

    def data(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self._folder / f"{file_id}.data"

    def results(self, batch_id: str) -> Path:
        """Return the path of the results of a batch while it runs."""
        return self._folder / f"{batch_id}.results"

    def file(self, file_id: str) -> FileRecord:
        """Return a file; raises `NotStored` if there is none of this key."""
        return FileRecord(**self._read(file_id, _FILE, "file"))

    def files(self) -> list[FileRecord]:
        """Return the files, the newest first."""
        records = [self.file(path.stem) for path in self._folder.glob("file-*.json")]
        return sorted(records, key=lambda record: (-record.created_at, record.id))

    def delete_file(self, file_id: str) -> None:
        """Remove a file; raises `NotStored` if there is none of this key."""
        self.file(file_id)
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.data(file_id).unlink(missing_ok=True)

    def add_batch(
        self, endpoint: str, input_file_id: str, metadata: dict[str, str] | None
    ) -> BatchRecord:
        """Keep a new batch; raises `NotStored` if its input is no file of this key."""
        self.file(input_file_id)
        now = int(time.time())
        record = BatchRecord(
            new_id("batch_"),
            endpoint,
            input_file_id,
            now,
            now + SECONDS_OF_A_WINDOW,
            metadata=metadata,
        )
        self.save(record)
        return record

    def batch(self, batch_id: str) -> BatchRecord:
        """Return a batch; raises `NotStored` if there is none of this key."""
        record = BatchRecord(**self._read(batch_id, _BATCH, "batch"))
        mark = self._cancelled(batch_id)
        if record.is_over or not mark.exists():
            return record
        times = {**record.times, "cancelling": int(mark.stat().st_mtime)}
        return replace(record, status="cancelling", times=times)

    def batches(self) -> list[BatchRecord]:
        """Return the batches, the newest first."""
        records = [self.batch(path.stem) for path in self._folder.glob("batch_*.json")]
        return sorted(records, key=lambda record: (-record.created_at, record.id))

    def cancel(self, batch_id: str) -> BatchRecord:
        """Mark a batch, which whoever runs it ends, and return it."""
        self._cancelled(batch_id).touch(0o600)
        return self.batch(batch_id)

    def _cancelled(self, batch_id: str) -> Path:
        """Return the path of the mark, which is apart from the record that is saved meanwhile."""
        return self._folder / f"{batch_id}.cancelled"

    def save(self, record: BatchRecord) -> None:
        """Keep a batch in its current state."""
        write_atomically(self._folder / f"{record.id}.json", json.dumps(asdict(record)))

    def enter(self, record: BatchRecord, status: Status, **changes: object) -> BatchRecord:
        """Keep a batch in another state, and return it."""
        times = {**record.times, status: int(time.time())}
        changed = replace(record, status=status, times=times, **changes)  # type: ignore[arg-type]
        self.save(changed)
        return changed

    def _read(self, name: str, form: re.Pattern[str], kind: str) -> dict[str, Any]:
        path = self._folder / f"{name}.json"
        if form.fullmatch(name):
            try:
                document: dict[str, Any] = json.loads(path.read_bytes())
                return document
            except FileNotFoundError:
                pass
        raise NotStored(f"There is no {kind} {quote(name)}.")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
