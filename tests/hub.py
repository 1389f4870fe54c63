"""A server that answers like the Hugging Face hub, which tests cannot reach, for one folder.

With the standard library alone, so that it also is a program for a pod: `hub.py FOLDER PORT`. There
every repository has these files, and none wants a token but those of which the hub itself says so.
"""

import hashlib
import json
import re
import select
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "meta-llama/"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that a download of a repository uses.

    Attributes:
        folder: The files of every repository.
        repository: The one that there is; None has all.
        token: What repositories want; None wants it of no one but for gated ones, and takes any.
        requested: The paths of all requests so far.
        commit: The commit of every branch.
        ranges: Those requests for part of a file: path, first and last byte.
        fault: A pattern of paths, and the status that they are answered with: 0 says nothing.
        storage: Where files are, under which address and with which signature; None for here.
    """

    folder: Path
    repository: str | None = None
    token: str | None = None
    requested: list[str]
    ranges: list[tuple[str, int, int]]
    commit: str = COMMIT
    fault: tuple[str, int] | None = None
    storage: tuple[str, str] | None = None

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        self.requested.append(self.path)
        if self.fault is not None and re.search(self.fault[0], self.path):
            self._fail(self.fault[1], body)
            return
        listed = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
        file = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path)
        match = listed or file
        if stored := re.match(r"/stored/([^?]+)[?]signature=(.*)", self.path):
            self._send_stored(stored[1], stored[2])
        elif match and not self._may_read(match[1]):
            self._send(401, b'{"error": "Invalid credentials"}', {}, body)
        elif match and self.repository not in (None, match[1]):
            headers = {"X-Error-Code": "RepoNotFound"}
            self._send(404, b'{"error": "Repository not found"}', headers, body)
        elif listed:
            self._send(200, json.dumps(self._listing(listed[1])).encode(), {}, body)
        elif file and self.storage is not None and body:
            address, signature = self.storage
            location = f"{address}/stored/{file[2]}?signature={signature}"
            self._send(302, b"", {"Location": location}, body)
        elif file and (self.folder / file[2]).is_file():
            content = (self.folder / file[2]).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            headers = {"ETag": etag, "X-Repo-Commit": self.commit}
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
            if part is None:
                self._send(200, content, headers, body)
            else:
                self._send_range(content, int(part[1]), int(part[2]), headers, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

    def _send_stored(self, name: str, signature: str) -> None:
        if self.storage is None or signature != self.storage[1] or self.headers["authorization"]:
            self._send(403, b"expired, or a token that is none of ours", {}, True)
            return
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"]).groups()
        self._send_range((self.folder / name).read_bytes(), int(first), int(last), {}, True)

    def _send_range(
        self, content: bytes, first: int, last: int, headers: dict[str, str], body: bool
    ) -> None:
        self.ranges.append((self.path, first, last))
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        self._send(206, part, headers, body)

    def _fail(self, status: int, body: bool) -> None:
        if status:
            self._send(status, b"{}", {}, body)
            return
        self.close_connection = True
        while self.fault is not None and not self.fault[1]:
            if select.select([self.connection], [], [], 0.05)[0]:  # the client has hung up
                return

    def _may_read(self, repository: str) -> bool:
        given = self.headers.get("authorization")
        if self.token is not None:
            return given == f"Bearer {self.token}"
        return bool(given) or not repository.startswith(GATED)

    def _listing(self, repository: str) -> object:
        files = {
            str(file.relative_to(self.folder)): file.stat().st_size
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        if "/tree/" in self.path:
            return [
                {"type": "file", "path": name, "size": size, "oid": "x"}
                for name, size in files.items()
            ]
        names = [self._sibling(name, size) for name, size in files.items()]
        return {"id": repository, "modelId": repository, "sha": self.commit, "siblings": names}

    def _sibling(self, name: str, size: int) -> dict[str, object]:
        if "blobs=" not in self.path:
            return {"rfilename": name}
        if not name.endswith(".safetensors"):
            return {"rfilename": name, "size": size, "blobId": "x"}
        digest = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        lfs = {"sha256": digest, "size": size, "pointerSize": 134}
        return {"rfilename": name, "size": size, "blobId": "x", "lfs": lfs}

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def make_server(address: str, port: int, folder: Path, **attributes: object) -> ThreadingHTTPServer:
    """Returns a hub that listens, with its class's attributes set."""
    handler = type(
        "OneHub", (Hub,), {"folder": folder, "requested": [], "ranges": [], **attributes}
    )
    server = ThreadingHTTPServer((address, port), handler)
    server.daemon_threads = True
    return server


if __name__ == "__main__":
    make_server("", int(sys.argv[2]), Path(sys.argv[1])).serve_forever()
