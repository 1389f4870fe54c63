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
from typing import BinaryIO

from predictor.batch.record_files import (
    BATCHES,
    FILES,
    NotStored,
    files_of,
    private,
    read_record,
    readable,
)
from predictor.batch.records import BatchRecord, FileRecord, Status, id_of_results, new_id
from predictor.batch.volume import volume_errors
from predictor.errors import BodyTooLarge, RequestError
from predictor.sentences import quote
from predictor.weights.store.atomic import write_atomically

SECONDS_OF_A_WINDOW = 24 * 3600
_SECONDS_OF_A_DAY = 24 * 3600
_OWNER = re.compile(r"[0-9a-f]{32}")


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
            LoadFailed: Its volume is full or fails.
        """
        with volume_errors(f"batch_dir {folder} cannot be written"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / ".writable").touch(0o600)
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
        return sum(status.st_size for _, status in files_of(self._folder, "*/*"))

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
        """Remove what is older than the limit, but for batches that are not over."""
        oldest = time.time() - self.limits.days * _SECONDS_OF_A_DAY
        for owned in self.owners():
            owned.remove_old(oldest)

    def _owned(self, owner: str) -> OwnedStore:
        return OwnedStore(self, self._folder / owner)


class OwnedStore:
    """The files and batches of one API key."""

    def __init__(self, store: BatchStore, folder: Path) -> None:
        """Take a folder, which is made when it is needed."""
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
        try:
            with open(self.data(file_id), "xb", opener=private) as data:
                shutil.copyfileobj(content, data)
                data.flush()
                os.fsync(data.fileno())
            return self._record(file_id, size, filename, purpose)
        except BaseException:
            self.data(file_id).unlink(missing_ok=True)
            raise

    def adopt(self, path: Path, batch_id: str, kind: str) -> FileRecord | None:
        """Make results of a batch one of the files; None if there are none.

        Args:
            path: Where they are; they are moved.
            batch_id: The batch.
            kind: ``output`` or ``error``, a part of the file's name.
        """
        size = path.stat().st_size if path.exists() else 0
        if not size:
            return None
        file_id = id_of_results(batch_id, kind)
        path.replace(self.data(file_id))
        return self._record(file_id, size, f"{batch_id}_{kind}.jsonl", "batch_output")

    def _record(self, file_id: str, size: int, filename: str, purpose: str) -> FileRecord:
        now = int(time.time())
        expires = now + self._store.limits.days * _SECONDS_OF_A_DAY
        record = FileRecord(file_id, size, now, expires, filename, purpose)
        write_atomically(self._folder / f"{file_id}.json", json.dumps(asdict(record)))
        return record

    def data(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self._folder / f"{file_id}.data"

    def content(self, file_id: str) -> Path:
        """Return the path of the content of a file; raises `NotStored` if there is none."""
        path = self.data(self.file(file_id).id)
        if not path.exists():
            raise NotStored(f"There is no content of file {quote(file_id)} any more.")
        return path

    def results(self, batch_id: str) -> Path:
        """Return the path of the results of a batch while it runs."""
        return self._folder / f"{batch_id}.results"

    def file(self, file_id: str) -> FileRecord:
        """Return a file; raises `NotStored` if there is none of this key."""
        return read_record(FILES, self._folder, file_id)

    def files(self) -> list[FileRecord]:
        """Return the files whose records can be read, the newest first."""
        records = readable(self._folder.glob("file-*.json"), self.file)
        return sorted(records, key=lambda record: (-record.created_at, record.id))

    def delete_file(self, file_id: str) -> None:
        """Remove a file.

        Raises:
            NotStored: There is none of this key.
            RequestError: A batch that is not over needs it.
        """
        self.file(file_id)
        for batch in self.batches():
            if batch.input_file_id == file_id and not batch.is_over:
                raise RequestError(
                    f"The file is the input of {batch.id}, which is {batch.status}; cancel that "
                    "batch, and delete the file when it has ended."
                )
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.data(file_id).unlink(missing_ok=True)

    def add_batch(
        self,
        endpoint: str,
        input_file_id: str,
        scope: bytes,
        metadata: dict[str, str] | None = None,
    ) -> BatchRecord:
        """Keep a new batch.

        Args:
            endpoint: The URL of its lines.
            input_file_id: The file with its lines.
            scope: The scope of its lines in the prefix cache, see `predictor.cache_scope`.
            metadata: The client's own texts.

        Raises:
            NotStored: The input is no file of this key.
        """
        self.file(input_file_id)
        now = int(time.time())
        record = BatchRecord(
            new_id("batch_"),
            endpoint,
            input_file_id,
            now,
            now + SECONDS_OF_A_WINDOW,
            scope.hex(),
            metadata=metadata,
        )
        self.save(record)
        return record

    def batch(self, batch_id: str) -> BatchRecord:
        """Return a batch; raises `NotStored` if there is none of this key."""
        record = read_record(BATCHES, self._folder, batch_id)
        if record.is_over:
            return record
        try:
            cancelled_at = self._cancelled(batch_id).stat().st_mtime
        except FileNotFoundError:
            return record
        times = {**record.times, "cancelling": int(cancelled_at)}
        return replace(record, status="cancelling", times=times)

    def batches(self) -> list[BatchRecord]:
        """Return the batches whose records can be read, the newest first."""
        records = readable(self._folder.glob("batch_*.json"), self.batch)
        return sorted(records, key=lambda record: (-record.created_at, record.id))

    def cancel(self, batch_id: str) -> BatchRecord:
        """Mark a batch, which whoever runs it ends, and return it.

        Raises:
            NotStored: There is none of this key.
            RequestError: It is over.
        """
        record = self.batch(batch_id)
        if record.is_over:
            raise RequestError(f"The batch is {record.status} already.")
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

    def remove_old(self, oldest: float) -> None:
        """Remove what was last changed before a Unix time, but for batches that are not over."""
        batches = [batch for batch in self.batches() if not batch.is_over]
        used = {name for batch in batches for name in (batch.id, batch.input_file_id)}
        for file, status in files_of(self._folder, "*"):
            if status.st_mtime < oldest and file.name.partition(".")[0] not in used:
                file.unlink(missing_ok=True)
