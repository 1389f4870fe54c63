"""The machine that is the cluster's one node, where the tests run on it.

CLUSTER_TEST_PROCESSES names a folder with a file for each process of the cluster, which begins with
the process's id and the time of its start, as `/proc` has it. Elsewhere nothing here is possible.
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
        folder: Where their ids are.
    """

    folder: Path

    @contextmanager
    def away(self, name: str) -> Iterator[None]:
        """Ends a process, and starts it again as it was."""
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
            (self.folder / name).write_text(f"{new} {_started(new)}\n")

    def predictor_of(self, uid: str) -> int:
        """Returns the process that serves in the pod with this uid."""
        written = (uid, uid.replace("-", "_"))  # as the kubelet's two cgroup drivers have it
        (process,) = (
            int(place.name)
            for place in Path("/proc").iterdir()
            if place.name.isdigit()
            and any(one in _read(place / "cgroup") for one in written)
            and "\0serve\0" in _read(place / "cmdline")
        )
        return process


@contextmanager
def small_volume(folder: Path, size: str) -> Iterator[Path]:
    """Gives a folder that holds no more than a size such as ``2m``, open to every user."""
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


def _end(process: int) -> None:
    """By SIGTERM, and by SIGKILL what takes its time: an API server lets its watchers go first."""
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


def _started(process: int) -> str:
    """When a process began: the 22nd field of its stat, see proc(5)."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[19]
