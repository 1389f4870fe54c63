"""Start real servers for the examples, each when it is first needed.

All are forks of one process that has imported torch, transformers and kserve, and so are their
engine processes: a server is ready in about a second.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from docs.generator.models import make_model
from tests.forkserver import fork_engine

_SECONDS_TO_START = 300
_FLAGS = {
    "demo": ["--max_model_len=256", "--prefill_chunk=64", '--max_memory={"cpu": "8MiB"}'],
    "torchserve": ["--max_model_len=256", "--torchserve_api"],
    "tgi": ["--max_model_len=256", "--tgi_api"],
}
_PRELOADED = (
    "predictor.server",
    "predictor.engine_main",
    "torch",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bloom.modeling_bloom",
)


def _serve(arguments: list[str], log: str) -> None:
    """Run a server in this process, with everything that it writes in a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    from predictor import cli, engine_process

    engine_process.launch = fork_engine
    os._exit(cli.main(arguments))


class Servers:
    """The servers by name. Closing them ends all that were started."""

    def __init__(self) -> None:
        """Start nothing yet."""
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # forks of small models on shared cores
        self._folder = tempfile.TemporaryDirectory()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        self._started: dict[str, tuple[Any, tuple[str, str]]] = {}

    def addresses(self, name: str) -> tuple[str, str]:
        """Return host and port of a server, REST and gRPC; start it if needed."""
        if name not in self._started:
            self._started[name] = self._start(name)
        return self._started[name][1]

    def close(self) -> None:
        """End all servers."""
        for process, _ in self._started.values():
            process.kill()
            process.join()
        self._started.clear()
        self._folder.cleanup()

    def _start(self, name: str) -> tuple[Any, tuple[str, str]]:
        model = make_model(name, Path(self._folder.name) / name)
        log = Path(self._folder.name) / f"{name}.log"
        served = "demo" if name in ("torchserve", "tgi") else name
        flags = [f"--model_name={served}", f"--model_dir={model}", *_FLAGS.get(name, [])]
        ports = ["--host=127.0.0.1", "--http_port=0", "--grpc_port=0"]
        process = self._context.Process(
            target=_serve, args=(["serve", *ports, *flags], str(log)), daemon=True
        )
        process.start()
        return process, _await_ready(process, log)


def _await_ready(process: Any, log: Path) -> tuple[str, str]:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        text = log.read_text() if log.exists() else ""
        rest, grpc = re.search(r"REST on http://(\S+)", text), re.search(r"gRPC on (\S+)", text)
        if rest and grpc and "is ready after" in text:
            return rest[1], grpc[1]
        if not process.is_alive():
            raise RuntimeError(f"the server ended:\n{text}")
        time.sleep(0.05)
    raise RuntimeError(f"the server is not ready after {_SECONDS_TO_START} s:\n{text}")
