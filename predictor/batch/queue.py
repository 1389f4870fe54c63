"""Runs the batches of a server one after another, the oldest first, whoever they belong to.

Their sequences yield to all others in the engine. A batch that the end of the process interrupts
goes on at the next start, from the results that it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from predictor.batch.endpoints import BatchEndpoints
from predictor.batch.input_file import InputFile
from predictor.batch.output_file import OutputFile
from predictor.batch.records import BatchRecord, Status
from predictor.batch.runner import BatchRunner, LineResult, RunLimits
from predictor.batch.store import BatchStore, NotStored, OwnedStore
from predictor.errors import PredictorError
from predictor.protocol.app import Endpoint

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 5.0
"""Seconds after which the directory is looked at again: another replica may have written there."""

_SECONDS_BETWEEN_SAVES = 1.0
_SECONDS_BETWEEN_CLEANINGS = 3600.0
_ANSWERED = b'"response":{"status_code":200,'
"""In a line of results alone: within a string its quotation marks are escaped."""


class BatchQueue:
    """The batches of a server that are not over."""

    def __init__(
        self,
        store: BatchStore,
        endpoints: Mapping[str, Endpoint],
        limits: RunLimits,
        *,
        longest: int,
    ) -> None:
        """Create the queue; `run` runs it.

        Args:
            store: Has the batches.
            endpoints: The endpoints by their paths.
            limits: What may be in flight.
            longest: Most bytes of a line.
        """
        self.endpoints = endpoints
        self._store, self._limits, self._longest = store, limits, longest
        self._changed = asyncio.Event()
        self._cleaned = 0.0

    def wake(self) -> None:
        """Look at the directory now: a batch was added, or is to be cancelled."""
        self._changed.set()

    async def run(self) -> None:
        """Run batches until this is cancelled."""
        while True:
            self._changed.clear()
            if not await self._step():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _SECONDS_BETWEEN_LOOKS)

    async def _step(self) -> bool:
        """Run the next batch to its end; return whether there was one that could run."""
        try:
            await self._clean()
            job = await asyncio.to_thread(self._next)
            return job is not None and await self._process(*job)
        except OSError:  # a volume that is full or away for a while
            logger.exception("The directory of batches cannot be used now")
            return False

    async def _clean(self) -> None:
        now = time.monotonic()
        if now >= self._cleaned:
            self._cleaned = now + _SECONDS_BETWEEN_CLEANINGS
            await asyncio.to_thread(self._store.remove_old)

    def _next(self) -> tuple[OwnedStore, BatchRecord] | None:
        jobs = [
            (owned, record)
            for owned in self._store.owners()
            for record in owned.batches()
            if not record.is_over
        ]
        return min(jobs, key=lambda job: (job[1].created_at, job[1].id), default=None)

    async def _process(self, owned: OwnedStore, record: BatchRecord) -> bool:
        """Run a batch to its end; return whether it has ended."""
        try:
            source = InputFile(owned.data(record.input_file_id), longest=self._longest)
            output = OutputFile(owned.results(record.id), most=max(1, source.size))
        except PredictorError as error:
            if owned.data(record.input_file_id).exists():
                logger.info("Batch %s waits: %s", record.id, error)
                return False
            owned.enter(record, "failed", error="The input file is not there any more.")
            return True
        try:
            run = _Run(owned, record, output, self._store)
            endpoints = BatchEndpoints(self.endpoints, scope=owned.owner)
            runner = BatchRunner(
                source, endpoints, self._limits, run.take, endpoint=record.endpoint
            )
            status, reason = await self._until_over(run, runner, source)
            await asyncio.to_thread(run.finish, status, reason)
        finally:
            output.close()
            source.close()
        logger.info("Batch %s is %s", record.id, status)
        return True

    async def _until_over(
        self, run: _Run, runner: BatchRunner, source: InputFile
    ) -> tuple[Status, str | None]:
        """Return the state in which a batch ends, and why it failed."""
        await asyncio.to_thread(run.begin, source)
        work = asyncio.create_task(runner.run(source.windows(run.is_done)))
        try:
            while not work.done():
                if (status := await asyncio.to_thread(run.reason_to_stop)) is not None:
                    return status, None
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait(
                    {work, changed},
                    timeout=_SECONDS_BETWEEN_SAVES,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                changed.cancel()
            work.result()
        except PredictorError as error:
            return "failed", str(error)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return "completed", None


class _Run:
    """One batch that runs."""

    def __init__(
        self, owned: OwnedStore, record: BatchRecord, output: OutputFile, store: BatchStore
    ) -> None:
        self._owned, self._record, self._output, self._store = owned, record, output, store
        self._completed = self._failed = 0
        self.is_done = output.has

    def begin(self, source: InputFile) -> None:
        """Count the lines, and those that have a result already."""
        total = sum(len(window) for window in source.windows(lambda _: False))
        for text in self._output.path.read_bytes().splitlines():
            self._count(is_ok=_ANSWERED in text)
        if self._record.status == "validating":
            self._record = self._owned.enter(self._record, "in_progress", total=total)

    def take(self, result: LineResult) -> None:
        """Keep the result of a line."""
        self._output.append(result.text)
        self._count(is_ok=result.is_ok)

    def reason_to_stop(self) -> Status | None:
        """Return the state in which it ends before its time, if there is a reason to.

        Raises:
            BodyTooLarge: The directory is full.
        """
        try:
            current = self._owned.batch(self._record.id)
        except NotStored:
            return "cancelled"  # it was too old, and was removed
        if current.status == "cancelling":
            self._record = replace(self._record, times=current.times)
            return "cancelled"
        if time.time() > self._record.expires_at:
            return "expired"
        self._store.check_room(0)
        self._record = self._counted()
        self._owned.save(self._record)
        return None

    def finish(self, status: Status, error: str | None) -> None:
        """Make files of the results, and note the end."""
        self._record = self._owned.enter(self._counted(), "finalizing")
        results = self._output.path
        parts = {True: results.with_suffix(".output"), False: results.with_suffix(".errors")}
        with (
            results.open("rb") as lines,
            parts[True].open("wb") as output,
            parts[False].open("wb") as errors,
        ):
            for text in lines:
                (output if _ANSWERED in text else errors).write(text)
        ids = {is_ok: self._adopt(path, is_ok=is_ok) for is_ok, path in parts.items()}
        self._owned.enter(
            self._record, status, output_file_id=ids[True], error_file_id=ids[False], error=error
        )
        results.unlink(missing_ok=True)

    def _adopt(self, path: Path, *, is_ok: bool) -> str | None:
        path.chmod(0o600)
        name = f"{self._record.id}_{'output' if is_ok else 'error'}.jsonl"
        file = self._owned.adopt(path, name)
        return None if file is None else file.id

    def _count(self, *, is_ok: bool) -> None:
        self._completed += is_ok
        self._failed += not is_ok

    def _counted(self) -> BatchRecord:
        return replace(self._record, completed=self._completed, failed=self._failed)
