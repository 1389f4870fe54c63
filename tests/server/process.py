"""Real `predictor serve` processes on free loopback ports."""

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

_SECONDS_TO_START = 240


class Served:
    """A server process.

    Attributes:
        name: The model's name.
        process: The process.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, name: str) -> None:
        self.process = process
        self.name = name
        self._log = log

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

    def _await(self, pattern: str) -> str:
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log)
            if found is not None:
                return found[1]
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
) -> Iterator[Served]:
    """Starts a server and ends it."""
    command = [
        *(prefix or ()),
        *(sys.executable, "-m", "predictor", "serve", "--host=127.0.0.1"),
        *("--http_port=0", "--grpc_port=0", f"--model_name={name}", f"--model_dir={model_dir}"),
        *flags,
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **(environ or {})},
            )
        try:
            yield Served(process, log, name)
        finally:
            process.kill()
            process.wait()
