"""One batch of a server that runs: its record, its results so far, and its end."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from predictor.batch.input_file import InputFile
from predictor.batch.lines import is_answered, result_key
from predictor.batch.output_file import OutputFile
from predictor.batch.record_files import NotStored, private
from predictor.batch.records import BatchRecord, Status
from predictor.batch.runner import LineResult
from predictor.batch.store import BatchStore, OwnedStore


class BatchRun:
    """A batch whose results this process alone writes. Every method uses the volume."""

    def __init__(
        self, owned: OwnedStore, record: BatchRecord, output: OutputFile, store: BatchStore
    ) -> None:
        """Take a batch.

        Args:
            owned: What belongs to its API key.
            record: Its record, read while `output` was held.
            output: Its results.
            store: Has all batches.
        """
        self._owned, self._record, self._output, self._store = owned, record, output, store
        self._completed = self._failed = 0
        self.is_done = output.has

    def begin(self, source: InputFile) -> None:
        """Count the lines, and those that have a result already.

        Raises:
            ConfigurationError: The results are of something else.
            LoadFailed: The volume fails.
        """
        self._output.read_done(most=max(1, source.size))
        done = self._output.done
        self._completed, self._failed = done.answered, done.failed
        if self._record.status == "validating":
            total = sum(len(window) for window in source.windows(lambda _: False))
            self._record = self._owned.enter(self._record, "in_progress", total=total)

    def append(self, results: Sequence[LineResult]) -> None:
        """Keep results of lines.

        Raises:
            LoadFailed: The volume is full or fails.
        """
        for result in results:
            self._output.append(result.text)
            self._completed += result.is_ok
            self._failed += not result.is_ok

    def reason_to_stop(self) -> Status | None:
        """Return the state in which it ends before its time, if there is a reason to."""
        try:
            current = self._owned.batch(self._record.id)
        except NotStored:
            return "cancelled"  # somebody has removed it
        if current.status == "cancelling":
            self._record = replace(self._record, times=current.times)
            return "cancelled"
        return "expired" if time.time() > self._record.expires_at else None

    def save(self) -> None:
        """Keep the counts.

        Raises:
            BodyTooLarge: The directory is full.
        """
        self._store.check_room(0)
        record = replace(self._record, completed=self._completed, failed=self._failed)
        if record != self._record:
            self._owned.save(record)
        self._record = record

    def finish(self, status: Status, error: str | None) -> None:
        """Make files of the results, and note the end. It can be tried again if it fails."""
        self._output.sync()
        self._record = self._owned.enter(self._record, "finalizing")
        counts = self._counts()
        parts = {is_ok: self._output.path.with_suffix(_SUFFIXES[is_ok]) for is_ok in (True, False)}
        try:
            self._split(counts, parts)
            ids = {is_ok: self._adopt(path, is_ok=is_ok) for is_ok, path in parts.items()}
        finally:
            for path in parts.values():
                path.unlink(missing_ok=True)
        self._owned.enter(
            self._record,
            status,
            completed=counts[True],
            failed=counts[False],
            output_file_id=ids[True],
            error_file_id=ids[False],
            error=error,
        )
        self._output.remove()

    def _counts(self) -> Counter[bool | None]:
        """Return how many results are answers, errors, and neither: damaged lines."""
        with self._output.path.open("rb") as lines:
            return Counter(map(_kind, lines))

    def _split(self, counts: Counter[bool | None], parts: dict[bool, Path]) -> None:
        """Write each kind of results to a file; results of one kind alone take no space again."""
        for path in parts.values():
            path.unlink(missing_ok=True)
        if len(counts) == 1 and None not in counts:
            with contextlib.suppress(OSError):  # a file system without links
                os.link(self._output.path, parts[bool(counts[True])])
                return
        with (
            self._output.path.open("rb") as lines,
            open(parts[True], "wb", opener=private) as output,
            open(parts[False], "wb", opener=private) as errors,
        ):
            for text in lines:
                if (kind := _kind(text)) is not None:
                    (output if kind else errors).write(text)
            for file in (output, errors):
                file.flush()
                os.fsync(file.fileno())

    def _adopt(self, path: Path, *, is_ok: bool) -> str | None:
        kind = "output" if is_ok else "error"
        file = self._owned.adopt(path, self._record.id, kind)
        return None if file is None else file.id


_SUFFIXES = {True: ".output", False: ".errors"}


def _kind(line: bytes) -> bool | None:
    """Return whether a line of results is an answer; None if it is no result."""
    return None if result_key(line) is None else is_answered(line)
