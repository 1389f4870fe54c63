"""A web server with the files of a folder, which supports ranges and fails as a test wants."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Files(BaseHTTPRequestHandler):
    """Answers ranges of files.

    Attributes:
        folder: The files.
        ranges: The requests so far: name, first and last byte.
        has_ranges: Whether it supports them.
        version: The header that tells versions of a file apart.
        authorization: The header that every request needs; None needs none.
        limits: Headers of answers that refuse requests until none is left.
        refusal: The status of these answers.
        broken: Returns for a request (name, first byte) the bytes after which the connection is
            cut; None sends all.
    """

    folder: Path
    ranges: list[tuple[str, int, int]]
    has_ranges = True
    version = "ETag"
    authorization: str | None = None
    limits: list[tuple[str, str]]
    refusal = 429
    broken: Callable[[str, int], int | None] = staticmethod(lambda name, first: None)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].removeprefix("/models/tiny/")
        file = self.folder / name
        if self.authorization not in (None, self.headers.get("authorization")):
            self.send_error(401)
        elif self.limits:
            self.send_response(self.refusal)
            self.send_header(*self.limits.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif not file.is_file():
            self.send_error(404)
        else:
            self._send(name, file.read_bytes())

    def _send(self, name: str, content: bytes) -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        first, last = (int(part[1]), int(part[2])) if part else (0, len(content) - 1)
        body = content[first : last + 1]
        self.ranges.append((name, first, last))
        if part and first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if part and self.has_ranges else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header(self.version, f'"{hashlib.md5(content).hexdigest()}"')
        self.end_headers()
        cut = self.broken(name, first)
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


@contextlib.contextmanager
def web(folder: Path, **attributes: Any) -> Iterator[tuple[str, type[Files]]]:
    """Yield the URL of a folder on a server, and the server's class."""
    handler = type(
        "OneFolder", (Files,), {"folder": folder, "ranges": [], "limits": [], **attributes}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/models/tiny", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
