"""llama.cpp's own server as a peer: its start, and users who send it token ids at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groups import MemoryGroup
from measuring import CannotMeasure
from served import running

_SECONDS_TO_START, _SECONDS_TO_REPLY = 300, 540
_POLL = 0.1


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A running server.

    Attributes:
        url: Its address.
        pid: Its process.
    """

    url: str
    pid: int

    def complete(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """Return the greedy continuation of a prompt, all of whose tokens are computed.

        Raises:
            CannotMeasure: The request failed, or the reply is shorter.
        """
        body = {
            "prompt": list(prompt),
            "n_predict": new_tokens,
            "temperature": 0,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        answer = self._post("/completion", body)
        tokens: list[int] = answer["tokens"]
        if len(tokens) != new_tokens or answer["tokens_evaluated"] != len(prompt):
            raise CannotMeasure(
                f"llama-server read {answer['tokens_evaluated']} tokens and replied with "
                f"{len(tokens)}, not {len(prompt)} and {new_tokens}."
            )
        return tokens

    def complete_all(
        self, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[float, list[list[int]]]:
        """Return the seconds that all replies together take, and the replies."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            began = time.perf_counter()
            replies = list(pool.map(lambda prompt: self.complete(prompt, new_tokens), prompts))
            return time.perf_counter() - began, replies

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS_TO_REPLY) as response:
                return json.load(response)
        except OSError as error:
            raise CannotMeasure(f"llama-server does not answer: {error}") from None

    def is_ready(self) -> bool:
        """Return whether the model is loaded."""
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def llama_server(
    program: Path, model: Path, *, users: int, context: int, group: MemoryGroup | None, work: Path
) -> Iterator[LlamaServer]:
    """Start a server with as many threads as processors, yield it when it is ready, and end it.

    Args:
        program: The program ``llama-server``.
        model: The GGUF file, which is mapped.
        users: Requests at one time.
        context: Tokens of all of them together.
        group: The memory cgroup to run in, or None.
        work: The folder of its log.

    Raises:
        CannotMeasure: It does not get ready, or dies.
    """
    port = _free_port()
    argv = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--threads", str(os.cpu_count()), "--parallel", str(users), "--kv-unified"]
    argv += ["--ctx-size", str(context), "--cache-ram", "0", "--fit", "off"]
    with running(argv if group is None else group.command(argv), work / "llama.log") as process:
        server = LlamaServer(f"http://127.0.0.1:{port}", process.pid)
        _await(server, process)
        yield server


def _await(server: LlamaServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not server.is_ready():
        if process.poll() is not None:
            raise CannotMeasure(f"llama-server ended with status {process.returncode}.")
        if time.monotonic() > deadline:
            raise CannotMeasure("llama-server does not get ready.")
        time.sleep(_POLL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
