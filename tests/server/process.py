"""Real `predictor serve` processes on free loopback ports.

Most are forks of a process that has imported everything (`tests.forked`); those that are started
cold are ``python -m predictor serve``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.forked import Forked
from tests.server import gate
from tests.server.gate import Gate

_SECONDS_TO_START = 240


class Served:
    """A server process.

    Attributes:
        name: The model's name.
        process: The process.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes] | Forked,
        log: Path,
        name: str,
        gate: Gate | None = None,
    ) -> None:
        self.process = process
        self.name = name
        self._log = log
        self._gate = gate

    @property
    def gate(self) -> Gate:
        """The gate of a server that was started with one."""
        assert self._gate is not None
        return self._gate

    @property
    def log(self) -> str:
        """All that it wrote to stderr so far."""
        return self._log.read_text(errors="replace")

    @property
    def url(self) -> str:
        """The REST server, once its port is open."""
        return self._await(r"REST on (http://[\d.]+:\d+)")

    @property
    def grpc(self) -> str:
        """Host and port of the gRPC server, once it is open."""
        return self._await(r"gRPC on ([\d.]+:\d+)")

    def await_ready(self) -> Served:
        """Waits until the model is ready."""
        self._await(r"is ready after ()")
        return self

    def examples(self) -> list[str]:
        """Waits for the lines that show how to ask, and returns them."""
        self._await(r"\ncurl (\S+/v2/models/\S+)\n")
        return re.findall(r"^curl .*$", self.log, re.MULTILINE)

    def predict(self, text: str, **parameters: Any) -> httpx.Response:
        """Sends one V1 request."""
        return httpx.post(
            f"{self.url}/v1/models/{self.name}:predict",
            json={"instances": [text], "parameters": parameters},
            timeout=120,
        )

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def await_draining(self) -> None:
        """Wait until it handles SIGTERM."""
        self._await(r"Signal 15: (draining)")

    def accepted(self) -> int:
        """Return the count of requests that run or wait, from ``--torchserve_api``."""
        (described,) = httpx.get(f"{self.url}/models/{self.name}", timeout=30).json()
        return int(described["jobQueueStatus"]["pendingRequests"])

    def await_accepted(self, count: int, seconds: float = 20) -> None:
        """Wait until so many requests run or wait."""
        deadline = time.monotonic() + seconds
        while (count_now := self.accepted()) != count:
            assert time.monotonic() < deadline, f"{count_now} requests run or wait"
            time.sleep(0.02)

    def gauge(self, name: str) -> float:
        """Return a metric of one sample."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        match = re.search(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        assert match is not None, name
        return float(match[1])

    def await_gauge(self, name: str, value: float, seconds: float = 20) -> None:
        """Wait until a metric of one sample has a value."""
        deadline = time.monotonic() + seconds
        while (current := self.gauge(name)) != value:
            assert time.monotonic() < deadline, f"{name} stayed {current}"
            time.sleep(0.02)

    def _await(self, pattern: str) -> str:
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            match = re.search(pattern, self.log)
            if match is not None:
                return match[1]
            if self.process.poll() is not None:
                raise AssertionError(f"exit code {self.process.returncode}:\n{self.log}")
            time.sleep(0.05)
        raise AssertionError(f"waited {_SECONDS_TO_START} s for {pattern!r}:\n{self.log}")


@contextlib.contextmanager
def serve(
    model_dir: Path,
    *flags: str,
    name: str = "m",
    prefix: Sequence[str] = (),
    environ: dict[str, str] | None = None,
    cold: bool = False,
    gated: bool = False,
    faults: Sequence[tuple[str, str, str]] = (),
) -> Iterator[Served]:
    """Starts a server and ends it.

    Args:
        model_dir: What it serves.
        flags: Further ones of the command.
        name: The model's name.
        prefix: A command that runs the server's; makes it a cold one.
        environ: Variables besides this process's; makes it a cold one, since libraries read some
            when they are imported.
        cold: Whether it is ``python -m predictor`` instead of a fork.
        gated: Whether the passes of the model, a BLOOM, go through a gate, which is open.
        faults: Module, function and argument of calls in the process before it serves.
    """
    argv = [
        *("serve", "--host=127.0.0.1", "--http_port=0", "--grpc_port=0"),
        *(f"--model_name={name}", f"--model_dir={model_dir}"),
        *flags,
    ]
    cold = cold or bool(prefix) or environ is not None
    assert not (cold and (gated or faults))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        log, barrier = Path(folder) / "log", Path(folder) / "gate"
        entered = opened.enter_context(Gate(barrier)) if gated else None
        process: subprocess.Popen[bytes] | Forked
        with log.open("wb") as stderr:
            if cold:
                process = subprocess.Popen(
                    [*prefix, sys.executable, "-m", "predictor", *argv],
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env={**os.environ, **(environ or {})},
                )
            else:
                gates = [(gate.__name__, gate.install.__name__, str(barrier))] if gated else []
                before = [*gates, *faults]
                process = Forked(argv, stderr=stderr, before=before)
        try:
            yield Served(process, log, name, entered)
        finally:
            process.kill()
            process.wait()
