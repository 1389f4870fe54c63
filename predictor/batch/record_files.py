"""Reads the records of files and batches, of which other processes may write and remove some.

A record that cannot be read is logged, and is not there. It is damaged, or of another version.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from predictor.batch.records import BatchRecord, FileRecord
from predictor.errors import RequestError, reason_of
from predictor.sentences import quote

logger = logging.getLogger(__name__)

AnyRecord = TypeVar("AnyRecord", FileRecord, BatchRecord)


class NotStored(RequestError):
    """The API key has no file or batch of this id."""

    http_status = 404
    grpc_code = "NOT_FOUND"


@dataclass(frozen=True, slots=True)
class RecordKind(Generic[AnyRecord]):
    """One kind of records.

    Attributes:
        noun: Its noun.
        id: The form of its ids.
        adapter: Validates it.
    """

    noun: str
    id: re.Pattern[str]
    adapter: TypeAdapter[AnyRecord]


FILES = RecordKind("file", re.compile(r"file-[0-9a-f]{24}"), TypeAdapter(FileRecord))
BATCHES = RecordKind("batch", re.compile(r"batch_[0-9a-f]{24}"), TypeAdapter(BatchRecord))


def read_record(kind: RecordKind[AnyRecord], folder: Path, name: str) -> AnyRecord:
    """Return a record.

    Args:
        kind: Its kind.
        folder: Where it is.
        name: The id that a client names.

    Raises:
        NotStored: There is none that can be read.
        OSError: The volume fails.
    """
    if kind.id.fullmatch(name):
        path = folder / f"{name}.json"
        try:
            record = kind.adapter.validate_json(path.read_bytes())
            if record.id == name:
                return record
            logger.warning("The record %s is that of %s", path, quote(record.id))
        except FileNotFoundError:
            pass
        except ValidationError as error:
            logger.warning("The record %s is damaged: %s", path, reason_of(error))
    raise NotStored(f"There is no {kind.noun} {quote(name)}.")


def readable(paths: Iterable[Path], read: Callable[[str], AnyRecord]) -> list[AnyRecord]:
    """Return the records that can be read.

    Args:
        paths: Their paths.
        read: Reads the one of an id.
    """
    records = []
    for path in paths:
        try:
            records.append(read(path.stem))
        except NotStored:
            continue
        except OSError as error:
            logger.warning("The record %s cannot be read: %s", path, error.strerror)
    return records


def files_of(folder: Path, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files of a pattern; another process may remove one meanwhile."""
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                yield path, status


def private(path: str, flags: int) -> int:
    """Open a file that its owner alone may read; an `opener` of `open`."""
    return os.open(path, flags, 0o600)
