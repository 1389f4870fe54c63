"""The cluster's one node, if the tests run on it.

CLUSTER_TEST_PROCESSES names a folder with a file for each process of the cluster. The file begins
with the process's id and its start time, in the form of `/proc`. Without it, nothing here works.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CLUSTER_TEST_PROCESSES"
_SECONDS_TO_END = 5


@dataclass(frozen=True)
class Node:
    """The node's processes.

    Attributes:
        folder: The folder of their ids.
    """

    folder: Path

    @contextmanager
    def away(self, name: str) -> Iterator[None]:
        """End a process, and start it again in the same way when the block ends."""
        process = int((self.folder / name).read_text().split()[0])
        place = Path(f"/proc/{process}")
        program = os.readlink(place / "exe")
        command = (place / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        environ = dict(
            pair.split(b"=", 1) for pair in (place / "environ").read_bytes().split(b"\0") if pair
        )
        log = os.readlink(place / "fd" / "2")
        try:
            _end(process)
            yield
        finally:
            files = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ]
            new = os.posix_spawn(program, command, environ, file_actions=files, setsid=True)
            (self.folder / name).write_text(f"{new} {start_time(new)}\n")

    def predictor_of(self, uid: str) -> int:
        """Return the id of the process that serves in the pod with this uid.

        The process for large bodies is a fork of it with the same command line, and its child.
        """
        spellings = (uid, uid.replace("-", "_"))  # of the kubelet's two cgroup drivers
        servers = {
            int(place.name): _parent(place)
            for place in Path("/proc").iterdir()
            if place.name.isdigit()
            and any(one in _read(place / "cgroup") for one in spellings)
            and "\0serve\0" in _read(place / "cmdline")
        }
        (process,) = (process for process, parent in servers.items() if parent not in servers)
        return process


@contextmanager
def small_volume(folder: Path, size: str) -> Iterator[Path]:
    """Give a folder of a limited size such as ``2m``, open to every user."""
    folder.mkdir()
    options = f"size={size},mode=1777"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _parent(place: Path) -> int:
    """Return the id of a process's parent: the fourth field of its stat, see proc(5)."""
    return int(_read(place / "stat").rpartition(") ")[2].split()[1])


def _end(process: int) -> None:
    """End a process by SIGTERM, then by SIGKILL: an API server waits for its watchers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(process, number)
        deadline = time.monotonic() + _SECONDS_TO_END
        while time.monotonic() < deadline:
            if _is_gone(Path(f"/proc/{process}")):
                return
            time.sleep(0.1)
    raise TimeoutError(f"process {process} does not end")


def _is_gone(place: Path) -> bool:
    return not (stat := _read(place / "stat")) or stat.rpartition(") ")[2].startswith("Z")


def start_time(process: int) -> str:
    """Return a process's start time: the 22nd field of its stat, see proc(5)."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[19]
