"""Starts the engine process and waits for it, in the process that answers requests.

The process is started as early as possible, and imports torch while this one opens its ports. It
loads nothing before it gets the settings.
"""

from __future__ import annotations

import contextlib
import os
import signal
import site
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import predictor
from predictor.batch_goal import BatchGoal
from predictor.engine.process.channel import Channel
from predictor.engine.process.client import EncoderClient, GenerationClient
from predictor.engine.process.messages import (
    Failed,
    Loading,
    Placed,
    Proceed,
    Ready,
    Results,
    Start,
    Stop,
)
from predictor.errors import EngineBroken, LoadFailed
from predictor.metric_updates import apply_updates
from predictor.settings import Settings

_SECONDS_TO_END = 5.0
"""Seconds for the process to end after it was told to, which takes milliseconds."""

_SECONDS_TO_EXIT = 1.0
"""Seconds between the end of a process's connection and its exit code."""


class Child(Protocol):
    """The part of ``subprocess.Popen`` that is used."""

    pid: int
    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raise `subprocess.TimeoutExpired` if it takes longer."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...


def launch(connection: socket.socket) -> Child:
    """Start ``predictor.engine_start`` with an end of a socket pair.

    It is this package's, also if that is not an installed one, such as one in a checkout.
    """
    fd = connection.fileno()
    # -P: modules are not looked for in the working directory, which may be a model's.
    command = [sys.executable, "-P", "-m", "predictor.engine_start", str(fd)]
    return subprocess.Popen(command, pass_fds=[fd], env=_environment())  # noqa: S603 - no input


def _environment() -> dict[str, str]:
    folder = str(Path(predictor.__file__).parents[1])
    if folder in site.getsitepackages():
        return dict(os.environ)
    folders = (os.environ.get("PYTHONPATH"), folder)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}


class EngineProcess:
    """The engine process of one model.

    Attributes:
        pid: Its process id.
    """

    def __init__(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = launch(theirs)
        self._channel = Channel(ours)
        self.pid = self._child.pid

    def load(
        self,
        settings: Settings,
        *,
        goal: BatchGoal | None = None,
        on_progress: Callable[[dict[str, object]], None],
        on_placed: Callable[[Placed], None],
    ) -> Any:
        """Have the model loaded, and return its `ModelFacts`. Blocks.

        Args:
            settings: The settings.
            goal: What the placement is for; None for the requests of a server.
            on_progress: Called with the progress of loading.
            on_placed: Called once with the placement, before a weight is read. Its error ends the
                start.

        Raises:
            PredictorError: The model cannot be served; the sentence gives the reason.
            LoadFailed: The process has ended.
        """
        self._channel.send(Start(settings, goal))
        while True:
            message = self._channel.receive()
            if isinstance(message, Ready):
                return message.facts
            if isinstance(message, Failed):
                raise message.error
            if isinstance(message, Loading):
                on_progress(message.progress)
            elif isinstance(message, Placed):
                on_placed(message)
                self._channel.send(Proceed())
            elif isinstance(message, Results):
                apply_updates(message.updates)
            elif message is None:
                raise LoadFailed(f"{self._end()} while it loaded the model.")

    def client(
        self,
        kind: type[GenerationClient | EncoderClient],
        on_broken: Callable[[EngineBroken], None],
    ) -> GenerationClient | EncoderClient:
        """Return the engine, once the model is loaded.

        Args:
            kind: The client of the task's kind of engine.
            on_broken: Called in another thread if the engine is broken, or its process has ended.
        """
        return kind(
            self._channel,
            on_broken=on_broken,
            ended=lambda: EngineBroken(f"{self._end()}."),
        )

    def stop(self) -> None:
        """Have the process release the offload volume and end."""
        self._channel.send(Stop())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_SECONDS_TO_END)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel cannot interrupt it
            self._child.wait(_SECONDS_TO_EXIT)
        self._channel.close()

    def _end(self) -> str:
        """Return how the process has ended, as the beginning of a sentence."""
        try:
            code = self._child.wait(_SECONDS_TO_EXIT)
        except subprocess.TimeoutExpired:
            return "The engine process closed its connection"
        if code == -signal.SIGKILL:
            return "The engine process was killed (signal 9, as when memory runs out)"
        if code < 0:
            return f"The engine process was ended by signal {-code}"
        return f"The engine process ended with exit code {code}"
