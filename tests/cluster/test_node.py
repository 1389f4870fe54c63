"""End and restart a process of the node; here it is the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.node import Node, start_time

CODE = "import os, time; print(os.environ['GIVEN'], flush=True); time.sleep(600)"


def process(folder: Path) -> int:
    return int((folder / "one").read_text().split()[0])


def await_lines(log: Path, count: int) -> None:
    """Wait until `count` processes had the same environment and log as the first."""
    deadline = time.monotonic() + 30
    while log.read_text().split("\n") != ["as given"] * count + [""]:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_process_is_away_and_comes_back_as_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        first = subprocess.Popen(
            [sys.executable, "-c", CODE], stdout=output, stderr=output, env={"GIVEN": "as given"}
        )
    (tmp_path / "one").write_text(f"{first.pid} {start_time(first.pid)}\n")

    await_lines(log, 1)
    with Node(tmp_path).away("one"):
        assert first.wait(timeout=30) == -signal.SIGTERM
    second = process(tmp_path)
    await_lines(log, 2)
    command = Path(f"/proc/{second}/cmdline").read_bytes().split(b"\0")
    with Node(tmp_path).away("one"):  # what it started itself it also ends
        os.waitpid(second, 0)
    third = process(tmp_path)
    os.kill(third, signal.SIGKILL)
    os.waitpid(third, 0)

    assert command[1:3] == [b"-c", CODE.encode()]
    assert (tmp_path / "one").read_text().split()[1].isdigit()
