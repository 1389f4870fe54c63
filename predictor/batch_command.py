"""The command ``batch``: the engine of ``serve`` without a port, for a file of requests.

The input is looked at first, so that a mistake is reported at once, and so that the placement is
for a batch of its lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from predictor import logs
from predictor.adapted_model import AdaptedModel
from predictor.batch.endpoints import BatchEndpoints
from predictor.batch.input_file import InputFile, InputLine, Shard
from predictor.batch.output_file import OutputFile
from predictor.batch.progress import SECONDS_BETWEEN_REPORTS, Progress
from predictor.batch.runner import BatchRunner, LineResult, RunLimits
from predictor.batch.volume import FileThreads
from predictor.batch_goal import BATCH_SIZES, BatchGoal
from predictor.engine_process import EngineProcess
from predictor.errors import ConfigurationError, EngineBroken
from predictor.model import PredictorModel
from predictor.protocol.app import batch_endpoints
from predictor.protocol.http.codec import CodecThreads
from predictor.protocol.http.off_loop import take_short_turns
from predictor.protocol.served import ServedModel
from predictor.settings import Settings
from predictor.watchdog import POLL_SECONDS, Watchdog

logger = logging.getLogger(__name__)

_THREADS = 2

_LOCK_SECONDS = 120.0
"""How long the output of a pod that was lost is waited for. A server of NFS takes its lock away
when its lease has ended, after 90 seconds by default."""

_BODIES_IN_FLIGHT = 3
"""Times as many bytes of lines in flight as a server has of bodies. The reserve is for 32 bytes for
each byte of a body that is decoded. Few lines are at one time; the tokens of the others take 10."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What the command line names.

    Attributes:
        input: The file of requests.
        output: The file of results.
        shard: The lines that are taken.
    """

    input: Path
    output: Path
    shard: Shard


@dataclass(frozen=True, slots=True)
class _ModelsByName:
    """The model by its names, and its adapters by theirs."""

    models: Mapping[str, ServedModel]

    @classmethod
    def of(cls, model: ServedModel, settings: Settings) -> _ModelsByName:
        names = (settings.model_name, *settings.model_aliases)
        adapters = {name: AdaptedModel(name, model) for name in settings.lora_modules}
        return cls(dict.fromkeys(names, model) | adapters)

    def get_model(self, name: str) -> ServedModel | None:
        return self.models.get(name)

    def get_models(self) -> Mapping[str, ServedModel]:
        return self.models


class Batch:
    """One run of the command."""

    def __init__(self, settings: Settings, job: BatchJob) -> None:
        """Open the files.

        Raises:
            ConfigurationError: A file cannot be used.
            LoadFailed: Another process has the output, or a volume fails.
        """
        logs.configure(settings.log_level, as_json=settings.log_format == "json")
        self._settings = settings
        if job.output.exists() and job.input.exists() and job.output.samefile(job.input):
            raise ConfigurationError("The input and the output are the same file.")
        self._input = InputFile(job.input, longest=settings.max_body_size, shard=job.shard)
        try:
            self._output = OutputFile(job.output, lock_seconds=_LOCK_SECONDS)
        except BaseException:
            self._input.close()
            raise
        self._output.read_done(most=self._input.size)
        self._files = FileThreads("lines")
        self._progress = Progress(self._input.size // job.shard.count)
        windows = self._input.windows(self._is_done)
        self._first: list[InputLine] = next(windows, [])
        self._windows = itertools.chain([self._first], windows)
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: EngineBroken | None = None

    @property
    def is_done(self) -> bool:
        """Whether every line has a result already."""
        return not self._first

    def goal(self) -> BatchGoal:
        """Return what the placement is to be for."""
        is_open = "max_batch_size" not in self._settings.model_fields_set
        sizes = BATCH_SIZES if is_open else (self._settings.max_batch_size,)
        tokens = sum(line.shape.tokens for line in self._first)
        return BatchGoal(sizes, -(-tokens // max(1, len(self._first))))

    def run(self, engine: EngineProcess) -> int:
        """Answer every line, and return the exit code.

        Args:
            engine: The engine process.

        Raises:
            PredictorError: The model cannot be loaded, or has failed, or the output is full.
        """
        try:
            return asyncio.run(self._run(engine))
        finally:
            self.close()

    def close(self) -> None:
        """Close the files."""
        self._output.close()
        self._input.close()

    def report(self) -> None:
        """Log that nothing is left to do."""
        logger.info("All %d lines have a result already", self._progress.earlier_lines)

    def _is_done(self, line: InputLine) -> bool:
        if not self._output.has(line):
            return False
        self._progress.skip(line.size)
        return True

    async def _run(self, engine: EngineProcess) -> int:
        self._loop = asyncio.get_running_loop()
        take_short_turns()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "codec"))
        model = PredictorModel(self._settings, self._on_broken, engine, self.goal())
        received: list[int] = []
        with ThreadPoolExecutor(1, "loader") as loader:
            await self._loop.run_in_executor(loader, model.load)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number, received)
        try:
            await self._answer_all(model)
            if self._broken is not None:
                raise self._broken
        finally:
            await asyncio.to_thread(model.release)
        return 128 + received[0] if received else 0

    async def _answer_all(self, model: PredictorModel) -> None:
        models = _ModelsByName.of(model, self._settings)
        endpoints = BatchEndpoints(batch_endpoints(models, CodecThreads()))
        limits = RunLimits.of(
            max(self.goal().sizes),
            _BODIES_IN_FLIGHT * self._settings.admission_limits().body_bytes,
        )
        runner = BatchRunner(self._input, endpoints, limits, self._take, files=self._files)
        self._progress.start()
        watching = asyncio.create_task(self._watch(model, endpoints))
        running = asyncio.create_task(runner.run(self._windows))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                self._progress.end()
        finally:
            for task in (running, watching, stopping):
                task.cancel()
            await asyncio.gather(running, watching, stopping, return_exceptions=True)
            await self._files.run(self._output.close)  # after what is still appended
            logger.info("%s", self._sentence(endpoints))

    async def _take(self, results: Sequence[LineResult]) -> None:
        await self._files.run(self._append, results)

    def _append(self, results: Sequence[LineResult]) -> None:
        for result in results:
            self._output.append(result.text)
            self._progress.count(result.line.size, is_ok=result.is_ok)

    async def _watch(self, model: PredictorModel, endpoints: BatchEndpoints) -> None:
        """Follow the engine's health, and log the progress now and then."""

        def on_dead(error: EngineBroken) -> None:
            if model.client is not None:
                model.client.abandon(error)

        watchdog = Watchdog(model.health, show=lambda _: None, on_dead=on_dead)
        for count in itertools.count(1):
            await asyncio.sleep(POLL_SECONDS)
            watchdog.poll()
            if count % round(SECONDS_BETWEEN_REPORTS / POLL_SECONDS) == 0:
                logger.info("%s", self._sentence(endpoints))

    def _sentence(self, endpoints: BatchEndpoints) -> str:
        return self._progress.sentence(endpoints.prompt_tokens, endpoints.completion_tokens)

    def _on_signal(self, number: int, received: list[int]) -> None:
        logger.info("Signal %d: stopping; the same command goes on from here", number)
        received.append(number)
        self._stop.set()

    def _on_broken(self, error: EngineBroken) -> None:
        """Stop; called in another thread."""
        self._broken = error
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed, since the work is done
                self._loop.call_soon_threadsafe(self._stop.set)
