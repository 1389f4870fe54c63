"""The command in a process of its own, forked where everything is imported already.

Tests of a process as a whole, from its first import on, start ``python -m predictor`` instead: of
its memory, of variables that libraries read when they are imported, of signals at the start.
"""

from __future__ import annotations

import array
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]

_ENVIRON = dict(os.environ)
_SECONDS_TO_FORK = 200
_NUMBER = array.array("i").itemsize

Call = tuple[Any, ...]
"""A module, a function of it, and what that is called with."""


class _ForkServer:
    """The process that `tests.forkserver` describes."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this process
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())],
                cwd=ROOT,
                env=_ENVIRON,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )

    def fork(self, request: dict[str, Any], stdout: int, stderr: int) -> tuple[int, socket.socket]:
        """Return a new child's PID, and the socket that reports its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            message = json.dumps(request).encode()
            socket.send_fds(self._control, [message], [stdout, stderr, theirs.fileno()])
        ours.settimeout(_SECONDS_TO_FORK)
        number = ours.recv(_NUMBER)
        if not number:
            self._log.seek(0)
            raise AssertionError(f"the fork server has ended:\n{self._log.read().decode()}")
        return array.array("i", number)[0], ours


@functools.cache
def _server() -> _ForkServer:
    return _ForkServer()


class Forked:
    """A process like one of `subprocess.Popen`, with the same names.

    Attributes:
        args: The command line.
        pid: Its PID.
        returncode: Its exit code, or a signal's number below zero; None until `poll` or `wait`
            finds that it has ended.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        cwd: Path | None = None,
        before: Sequence[Call] = (),
    ) -> None:
        """Start ``predictor`` with these arguments and this process's environment.

        Args:
            argv: The arguments.
            stdout: A file for its output, which goes to /dev/null without one.
            stderr: The same for stderr.
            cwd: Its working directory; by default this process's.
            before: What is called in the process first, such as what puts a gate into a model.
        """
        self.args = ["predictor", *argv]
        self.returncode: int | None = None
        request = {
            "argv": list(argv),
            "environ": dict(os.environ),
            "cwd": str(cwd or Path.cwd()),
            "before": [list(call) for call in before],
        }
        with open(os.devnull, "wb") as nothing:
            out, err = ((file or nothing).fileno() for file in (stdout, stderr))
            self.pid, self._report = _server().fork(request, out, err)

    def poll(self) -> int | None:
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._await(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._report.settimeout(timeout)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                code = self._report.recv(_NUMBER)
                assert code, "the fork server has ended"
                self.returncode = array.array("i", code)[0]
                self._report.close()
        return self.returncode


def run(
    argv: Sequence[str], *, timeout: float = 120, cwd: Path | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``predictor`` to its end, like `subprocess.run` with ``capture_output`` and ``text``."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Forked(argv, stdout=out, stderr=err, cwd=cwd)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    done = subprocess.CompletedProcess(process.args, process.wait(), *texts)
    if check:
        done.check_returncode()
    return done
