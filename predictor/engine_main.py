"""The engine process, with one end of a socket pair.

It plans and loads the model, runs the engine, and ends with the process at the other end. Why there
are two processes is said in `predictor.engine.process`.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import resource
import signal
import socket
import threading
import time
from typing import NoReturn

from predictor import constraints, pod, startup
from predictor.adapters import RuntimeAdapters
from predictor.batch_goal import BatchGoal
from predictor.batch_plan import prepare_batch
from predictor.engine.process.channel import Channel
from predictor.engine.process.heat_report import HeatReport
from predictor.engine.process.host import EngineHost, Outbox
from predictor.engine.process.hosted_adapters import HostedAdapters
from predictor.engine.process.messages import (
    Broken,
    Failed,
    Loading,
    Placed,
    Proceed,
    Ready,
    Start,
    Stop,
)
from predictor.errors import EngineBroken, PredictorError, start_error, unexpected
from predictor.heartbeat import SECONDS_BETWEEN_BEATS, Heartbeat
from predictor.metric_updates import MetricRecorder
from predictor.placement.report import table
from predictor.weights.progress import Progress

_BEATS_BETWEEN_HEAT = 2
"""Reports of health for one of the use of experts: 3 ms for 60 layers of 256 experts."""

_SECONDS_TO_SEND = 2.0
"""Seconds for the last messages to be sent before the process ends."""

logger = logging.getLogger(__name__)


def main(connection: socket.socket) -> NoReturn:
    """Serve the process at the other end of a connection until it says so, or ends."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the other process decides
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # every reader opens every shard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    channel = Channel(connection)
    start = channel.receive()
    code = _EngineProcess(channel, start).run() if isinstance(start, Start) else 1
    channel.flush(_SECONDS_TO_SEND)
    logging.shutdown()
    os._exit(code)


class _EngineProcess:
    """One model, from its start to its end."""

    def __init__(self, channel: Channel, start: Start) -> None:
        self._channel, self._settings = channel, start.settings
        self._goal: BatchGoal | None = start.goal
        self._recorder = MetricRecorder()
        self._outbox = Outbox(channel, self._recorder)
        self._host: EngineHost | None = None
        self._proceed, self._ended = threading.Event(), threading.Event()
        self._exit_code = 0

    def run(self) -> int:
        """Load the model, serve until the end, and return the exit code."""
        threading.Thread(target=self._receive, name="requests", daemon=True).start()
        try:
            started = self._load()
        except PredictorError as error:
            self._channel.send(Failed(error))
            return error.exit_code
        # Libraries raise errors of any type; the other process has one sentence for them.
        except Exception as error:
            logger.exception("The model cannot be loaded because of an error that nobody expected")
            failed = start_error(error, unexpected(error))
            self._channel.send(Failed(failed))
            return failed.exit_code
        gc.collect()
        gc.freeze()  # a collection of the millions of objects of libraries would stop every thread
        # After the warm-up and before any request, so that requests alone count.
        heat = HeatReport(self._channel, started.weights.count_heat(), self._settings.model_name)
        adapters = RuntimeAdapters.of(started.engine, self._settings.lora_memory)
        hosted = None if adapters is None else HostedAdapters(adapters, self._channel)
        metrics = started.metrics
        self._host = EngineHost(
            started.engine, self._outbox, hosted, stalled=lambda: metrics.stall_seconds
        )
        self._outbox.flush()
        self._channel.send(Ready(started.facts))
        watch = threading.Thread(
            target=self._beat, args=(started.engine.heartbeat, heat), daemon=True
        )
        watch.start()
        self._ended.wait()
        if not self._exit_code:
            started.weights.release()
        return self._exit_code

    def _load(self) -> startup.Started:
        settings = self._settings
        checkpoint = startup.open_checkpoint(settings)
        resources = pod.read_resources(
            settings.offload_folder, gpu_fraction=settings.gpu_fraction, others=(os.getppid(),)
        )
        for note in (*resources.notes, *constraints.inherited_notes(settings)):
            logger.warning("%s", note)
        if self._goal is None:
            prepared = startup.prepare(settings, checkpoint, resources)
        else:
            settings, prepared = prepare_batch(settings, checkpoint, resources, self._goal)
        logger.info("%s", table(prepared.placement))
        facts = prepared.encoder_facts
        self._channel.send(Placed(prepared.placement, checkpoint.task, checkpoint.path, facts))
        self._proceed.wait()
        hooks = startup.EngineHooks(self._break, self._outbox.flush, self._recorder.child)
        progress = Progress(report=lambda numbers: self._channel.send(Loading(numbers)))
        return startup.bring_up(settings, prepared, progress, hooks)

    def _receive(self) -> None:
        """Handle the messages of the other process; end at once with it."""
        try:
            while (message := self._channel.receive()) is not None:
                if isinstance(message, Stop):
                    self._ended.set()
                elif isinstance(message, Proceed):
                    self._proceed.set()
                elif self._host is not None:
                    self._host.handle(message)
        finally:  # whatever was raised: nobody would hear of another request
            os._exit(1)

    def _beat(self, heartbeat: Heartbeat, heat: HeatReport) -> None:
        """Report the engine's health, and the use of its experts, until the end."""
        for beat in itertools.count():
            self._channel.send(heartbeat.health())
            if beat % _BEATS_BETWEEN_HEAT == 0:
                heat.send()
            time.sleep(SECONDS_BETWEEN_BEATS)

    def _break(self, error: EngineBroken) -> None:
        self._channel.send(Broken(error))
        self._exit_code = error.exit_code
        self._ended.set()
