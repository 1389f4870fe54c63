"""A stream socket that carries pickled messages between the two processes.

The peer is our own process at the other end of a socket pair, so its pickles are trusted.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import threading
from collections import deque

_LENGTH = struct.Struct("<Q")
_READ_BYTES = 2**18
"""Bytes that are read at once. The kernel's buffer of a socket pair holds about as many."""


class Channel:
    """One end of the connection. Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket) -> None:
        """Take a connected stream socket."""
        self._connection = connection
        self._input = connection.makefile("rb", buffering=_READ_BYTES)
        self._input_lock = threading.Lock()
        self._lock = threading.Lock()
        self._backlog: deque[memoryview] = deque()
        self._writer: threading.Thread | None = None

    def send(self, message: object) -> None:
        """Send a message without waiting for the peer.

        If the peer does not read, a thread sends the rest. Once the peer has closed, messages are
        dropped: whoever receives notices.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        frame = memoryview(_LENGTH.pack(len(data)) + data)
        with self._lock, contextlib.suppress(OSError):
            if not self._backlog:
                frame = frame[self._send_now(frame) :]
            if frame:
                self._backlog.append(frame)
                self._start_writer()

    def receive(self) -> object | None:
        """Return the next message; None if the peer has closed or ended."""
        try:
            with self._input_lock:
                length = self._input.read(_LENGTH.size)
                data = self._input.read(_LENGTH.unpack(length)[0]) if length else b""
        except (OSError, ValueError, struct.error):  # reset, closed here, or cut off
            return None
        try:
            return pickle.loads(data) if data else None  # noqa: S301 - see the module
        except (EOFError, pickle.UnpicklingError):
            return None

    def flush(self, seconds: float) -> None:
        """Wait until everything is sent, but for so long at most."""
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join(seconds)

    def close(self) -> None:
        """Close the connection; the peer receives None."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # ends a read in another thread
        with self._input_lock:
            self._input.close()
        self._connection.close()

    def _send_now(self, frame: memoryview) -> int:
        try:
            return self._connection.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="channel", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        """Send the backlog, in order, and end."""
        while True:
            with self._lock:
                if not self._backlog:
                    self._writer = None
                    return
                frame = self._backlog[0]
            with contextlib.suppress(OSError):
                self._connection.sendall(frame)
            with self._lock:
                self._backlog.popleft()
