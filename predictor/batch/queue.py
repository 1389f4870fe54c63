"""Runs the batches of a server one after another, the oldest first, whoever they belong to.

Their sequences yield to all others in the engine. A batch that the end of the process interrupts
goes on at the next start, from the results that it has. What is wrong with one batch, its record or
its files, is no other's fault: each either ends, or is left for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial

from predictor.batch.batch_run import BatchRun
from predictor.batch.endpoints import BatchEndpoints
from predictor.batch.input_file import InputFile
from predictor.batch.output_file import OutputFile, OutputHeld
from predictor.batch.record_files import NotStored
from predictor.batch.records import BatchRecord, Status
from predictor.batch.runner import BatchRunner, LineResult, RunLimits
from predictor.batch.store import BatchStore, OwnedStore
from predictor.batch.volume import FileThreads
from predictor.errors import ConfigurationError, LoadFailed, PredictorError, unexpected
from predictor.protocol.app import Endpoint

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 5.0
"""Seconds after which the directory is looked at again: another replica may have written there."""

_SECONDS_BETWEEN_SAVES = 1.0
_SECONDS_BETWEEN_CLEANINGS = 3600.0
_SECONDS_OF_A_PAUSE = 60.0
"""Seconds for which a batch is left whose volume is full or fails. Others run meanwhile."""

_DAMAGED = "The results so far cannot be continued; those that are whole are kept."
_NO_INPUT = "The input file cannot be read any more."


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
        self._files = FileThreads("batches")
        self._cleaned = 0.0
        self._paused: dict[str, float] = {}

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
        """Run the first batch that can run to its end; return whether there was one."""
        try:
            await self._clean()
            jobs = await self._files.run(self._jobs)
        # Whatever it is, the queue goes on when it is over, such as a volume that is away.
        except Exception:
            logger.exception("The directory of batches cannot be used now")
            return False
        for owned, record in jobs:
            if await self._try(owned, record):
                return True
        return False

    async def _clean(self) -> None:
        now = time.monotonic()
        if now >= self._cleaned:
            self._cleaned = now + _SECONDS_BETWEEN_CLEANINGS
            await self._files.run(self._store.remove_old)

    def _jobs(self) -> list[tuple[OwnedStore, BatchRecord]]:
        """Return the batches that are not over, the oldest first, but for those that are left."""
        now = time.monotonic()
        self._paused = {key: end for key, end in self._paused.items() if end > now}
        jobs = [
            (owned, record)
            for owned in self._store.owners()
            for record in owned.batches()
            if not record.is_over
            and (record.id not in self._paused or record.status == "cancelling")
        ]
        return sorted(jobs, key=lambda job: (job[1].created_at, job[1].id))

    async def _try(self, owned: OwnedStore, record: BatchRecord) -> bool:
        """Run a batch to its end; return whether it has ended."""
        try:
            return await self._process(owned, record)
        except (OutputHeld, NotStored):  # another replica runs it, or has removed it
            return False
        except (LoadFailed, OSError) as error:
            logger.warning("Batch %s waits: %s", record.id, error)
        # The others go on.
        except Exception:
            logger.exception("Batch %s cannot be ended", record.id)
        self._paused[record.id] = time.monotonic() + _SECONDS_OF_A_PAUSE
        return False

    async def _process(self, owned: OwnedStore, record: BatchRecord) -> bool:
        try:
            output = await self._files.run(OutputFile, owned.results(record.id))
        except ConfigurationError as error:
            logger.warning("Batch %s fails: %s", record.id, error)
            await self._files.run(partial(owned.enter, record, "failed", error=_DAMAGED))
            return True
        try:
            # Until here, another replica may have ended it.
            record = await self._files.run(owned.batch, record.id)
            if record.is_over:
                await self._files.run(output.remove)
                return False
            run = BatchRun(owned, record, output, self._store)
            status, reason = await self._outcome(run, owned, record)
            await self._files.run(run.finish, status, reason)
        finally:
            await self._files.run(output.close)
        logger.info("Batch %s is %s", record.id, status)
        return True

    async def _outcome(
        self, run: BatchRun, owned: OwnedStore, record: BatchRecord
    ) -> tuple[Status, str | None]:
        """Return the state in which a batch ends, and why it failed.

        Raises:
            LoadFailed, OSError: A volume is full or fails, maybe for a while.
        """
        if (status := await self._files.run(run.reason_to_stop)) is not None:
            return status, None
        path = owned.data(record.input_file_id)
        try:
            source = await self._files.run(partial(InputFile, path, longest=self._longest))
        except ConfigurationError as error:
            logger.warning("Batch %s fails: %s", record.id, error)
            return "failed", _NO_INPUT
        try:
            return await self._run(run, source, record)
        except (LoadFailed, OSError):
            raise
        except ConfigurationError as error:
            logger.warning("Batch %s fails: %s", record.id, error)
            return "failed", _DAMAGED
        except PredictorError as error:
            return "failed", str(error)
        # It would fail in the same way again.
        except Exception as error:
            logger.exception("Batch %s fails", record.id)
            return "failed", unexpected(error)
        finally:
            await self._files.run(source.close)

    async def _run(
        self, run: BatchRun, source: InputFile, record: BatchRecord
    ) -> tuple[Status, str | None]:
        async def take(results: Sequence[LineResult]) -> None:
            await self._files.run(run.append, results)

        endpoints = BatchEndpoints(self.endpoints, scope=bytes.fromhex(record.scope))
        runner = BatchRunner(
            source, endpoints, self._limits, take, files=self._files, endpoint=record.endpoint
        )
        await self._files.run(run.begin, source)
        work = asyncio.create_task(runner.run(source.windows(run.is_done)))
        try:
            while not work.done():
                if (status := await self._files.run(run.reason_to_stop)) is not None:
                    return status, None
                await self._files.run(run.save)
                await self._until_changed(work)
            work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return "completed", None

    async def _until_changed(self, work: asyncio.Task[None]) -> None:
        """Wait until a batch has ended or is to be looked at."""
        self._changed.clear()
        changed = asyncio.create_task(self._changed.wait())
        await asyncio.wait(
            {work, changed},
            timeout=_SECONDS_BETWEEN_SAVES,
            return_when=asyncio.FIRST_COMPLETED,
        )
        changed.cancel()
