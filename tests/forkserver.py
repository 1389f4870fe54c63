"""Run the command in forks of a process that has imported it: ``python -m tests.forkserver FD``.

Importing torch, transformers and kserve takes a process many times longer than what most tests ask
of it. This one imports everything once, starts no thread, and forks a child for every request that
comes over the socket FD; `tests.forked` is the other end. It ends with that other end, and its
children with it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

LARGEST = 2**17
"""The most bytes of a request, which has a command line and an environment."""

_LAZY = (
    "accelerate.hooks",
    "sentencepiece",
    "tokenizers",
    "transformers.generation.logits_process",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bloom.modeling_bloom",
    "transformers.models.llama.modeling_llama",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_impl",
)
"""What libraries import at its first use."""

_PR_SET_PDEATHSIG = 1


@dataclass
class _Child:
    pid: int
    ended: int
    """A pidfd, which can be read when the child has ended."""
    report: socket.socket


def preload() -> None:
    """Import what the command may import, in the order of the command."""
    import predictor
    from predictor import cli, logs

    logs.configure()
    del cli
    for module in pkgutil.walk_packages(predictor.__path__, "predictor."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LAZY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy the pages of all that was imported


def main() -> None:
    """Serve requests until the other end is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"importing started threads, and a fork has none of them: {threads}"
    _Server(control).run()


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._on_request)

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _on_request(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._control, LARGEST, 3)
        if not message:
            for child in self._children.values():
                _kill(child.pid)
            os._exit(0)
        report = socket.socket(fileno=fds.pop())
        pid = os.fork()
        if pid == 0:
            self._close()
            report.close()
            _run(json.loads(message), *fds)
        for fd in fds:
            os.close(fd)
        child = _Child(pid, os.pidfd_open(pid), report)
        self._children[pid] = child
        report.send(array.array("i", [pid]).tobytes())
        self._selector.register(child.ended, selectors.EVENT_READ, lambda: self._on_end(child))
        self._selector.register(report, selectors.EVENT_READ, lambda: self._on_close(child))

    def _on_end(self, child: _Child) -> None:
        """Report how a child ended; its PID stays its own until the client closes the report."""
        exited = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert exited is not None
        code = exited.si_status if exited.si_code == os.CLD_EXITED else -exited.si_status
        self._selector.unregister(child.ended)
        with contextlib.suppress(BrokenPipeError):
            child.report.send(array.array("i", [code]).tobytes())

    def _on_close(self, child: _Child) -> None:
        _kill(child.pid)
        os.waitpid(child.pid, 0)
        if child.ended in self._selector.get_map():
            self._selector.unregister(child.ended)
        self._selector.unregister(child.report)
        os.close(child.ended)
        child.report.close()
        del self._children[child.pid]

    def _close(self) -> None:
        """Close the server's descriptors in a child."""
        self._selector.close()
        self._control.close()
        for child in self._children.values():
            os.close(child.ended)
            child.report.close()


class ForkedEngine:
    """An engine process that is a fork; the part of `subprocess.Popen` that is used."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self._ended = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("engine", timeout or 0)
        with self._lock:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            _kill(self.pid)


def fork_engine(connection: socket.socket) -> ForkedEngine:
    """Start the engine process as a fork of the command, which has no other thread yet."""
    pid = os.fork()
    if pid == 0:
        _become_engine(connection)
    return ForkedEngine(pid)


def _become_engine(connection: socket.socket) -> NoReturn:
    fd = os.dup2(connection.fileno(), 3)
    os.closerange(4, 1024)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    from predictor import engine_main

    engine_main.main(socket.socket(fileno=fd))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _run(request: dict[str, Any], stdout: int, stderr: int) -> NoReturn:
    """Become the command, in a child."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    sys.argv = ["predictor", *request["argv"]]
    from predictor import engine_process

    engine_process.launch = fork_engine
    try:
        for module, function, *arguments in request["before"]:
            getattr(importlib.import_module(module), function)(*arguments)
        importlib.import_module("predictor.cli").run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
