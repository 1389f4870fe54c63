"""A file system whose reads can be made to hang: a read-only mirror of a folder, over /dev/fuse.

The server speaks the kernel's protocol itself (``include/uapi/linux/fuse.h``, version 7.31) in a
process of its own. While that process is stopped no request is answered, as if a disk hung. The
requests then wait in the kernel's queue, where a fatal signal may interrupt them, as it may those
of a hung NFS mount. A request that a FUSE server has taken from the queue could not be interrupted.

Needs root. Where nothing can be mounted the test that asks is skipped, or fails if
REQUIRE_ROOT_TESTS=1.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.skips import skip_or_fail

_BUFFER = 1 << 20
_NODE, _HANDLE = "<Q", "<QQII"
_HEADER = struct.Struct("<IIQQIIII")
_DIRECT_IO, _NO_FLUSH = 1, 32
_ASYNC_READ = 1


class HangingVolume:
    """A mounted mirror.

    Attributes:
        path: Where it is mounted.
    """

    def __init__(self, path: Path, server: subprocess.Popen[bytes]) -> None:
        self.path = path
        self._server = server

    def hang(self) -> None:
        """Answer no request until `resume`."""
        self._server.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self._server.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)

    def resume(self) -> None:
        """Answer requests again, those that wait among them."""
        self._server.send_signal(signal.SIGCONT)


@contextmanager
def hanging_volume(source: Path, place: Path) -> Iterator[HangingVolume]:
    """Mount a mirror of a folder; skip where that cannot be done.

    Args:
        source: The folder.
        place: The folder to mount on, which is made if need be.
    """
    place.mkdir(exist_ok=True)
    server = subprocess.Popen(
        [sys.executable, __file__, str(source), str(place)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert server.stdout is not None
    with server, server.stdout:
        reason = server.stdout.readline().decode().strip()
        if reason != "mounted":
            skip_or_fail(f"FUSE cannot be mounted here: {reason}", "REQUIRE_ROOT_TESTS")
        try:
            yield HangingVolume(place, server)
        finally:
            server.kill()  # closes /dev/fuse, which ends all requests that wait
            subprocess.run(["umount", "--lazy", str(place)], check=False)


class _Mirror:
    """Answers the kernel's requests; nodes are numbered in the order of their discovery."""

    def __init__(self, source: str) -> None:
        self._paths = {1: source}
        self._nodes = {source: 1}
        self._files: dict[int, int] = {}
        self.operations: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: self._getattr,
            5: lambda node, _: os.readlink(self._paths[node]).encode(),
            14: self._open,
            15: self._read,
            17: lambda *_: struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),
            18: self._release,
            26: self._init,
            27: lambda *_: struct.pack("<QII", 0, 0, 0),
            28: self._readdir,
            29: lambda *_: b"",
        }

    def _init(self, _: int, body: bytes) -> bytes:
        _, _, readahead, _ = struct.unpack_from("<IIII", body)
        return struct.pack("<IIIIHHIIHH32x", 7, 31, readahead, _ASYNC_READ, 16, 12, 4096, 1, 255, 0)

    def _lookup(self, parent: int, body: bytes) -> bytes:
        path = os.path.join(self._paths[parent], os.fsdecode(body.rstrip(b"\0")))
        attributes = _attributes(path)
        node = self._nodes.setdefault(path, len(self._nodes) + 1)
        self._paths[node] = path
        return struct.pack("<QQQQII", node, 0, 3600, 3600, 0, 0) + attributes

    def _getattr(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", 3600, 0, 0) + _attributes(self._paths[node])

    def _open(self, node: int, _: bytes) -> bytes:
        file = os.open(self._paths[node], os.O_RDONLY)
        return struct.pack("<QII", file, _NO_FLUSH, 0)

    def _read(self, _: int, body: bytes) -> bytes:
        file, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(file, size, offset)

    def _release(self, _: int, body: bytes) -> bytes:
        (file,) = struct.unpack_from("<Q", body)
        os.close(file)
        return b""

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        entries = b""
        for index, name in enumerate([".", "..", *sorted(os.listdir(self._paths[node]))]):
            raw = os.fsencode(name)
            entry = struct.pack("<QQII", index + 1, index + 1, len(raw), 0) + raw
            entry += b"\0" * (-len(entry) % 8)
            if index >= offset and len(entries) + len(entry) <= size:
                entries += entry
        return entries


def _attributes(path: str) -> bytes:
    status = os.lstat(path)
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    return struct.pack(
        "<6Q10I",
        *(status.st_ino, status.st_size, status.st_blocks),
        *(time // 10**9 for time in times),
        *(time % 10**9 for time in times),
        *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid, 0, 4096, 0),
    )


def _serve(device: int, mirror: _Mirror) -> None:
    """Answer requests until the file system is unmounted. Forgets need no answer."""
    forget, batch_forget, interrupt = 2, 42, 36
    while True:
        try:
            request = os.read(device, _BUFFER + 4096)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue  # the request was interrupted
            return
        _, operation, unique, node, *_ = _HEADER.unpack_from(request)
        if operation in (forget, batch_forget, interrupt):
            continue
        body, failure = b"", errno.ENOSYS
        if operation in mirror.operations:
            try:
                body, failure = mirror.operations[operation](node, request[_HEADER.size :]), 0
            except OSError as error:
                failure = error.errno or errno.EIO
        answer = struct.pack("<IiQ", 16 + len(body), -failure, unique) + body
        try:
            os.write(device, answer)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the request was interrupted
                raise


def _main(source: str, place: str) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        print(error.strerror, flush=True)
        return
    root = stat.S_IFMT(os.stat(source).st_mode)
    options = f"fd={device},rootmode={root:o},user_id=0,group_id=0,allow_other"
    read_only_nosuid = 1 | 2
    if library.mount(b"mirror", place.encode(), b"fuse", read_only_nosuid, options.encode()):
        print(os.strerror(ctypes.get_errno()), flush=True)
        return
    print("mounted", flush=True)
    _serve(device, _Mirror(source))


if __name__ == "__main__":
    _main(*sys.argv[1:])
