"""Real cgroups, made-up hosts in a temporary folder and a loopback API server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.cgroups import Cgroup
from tests.cgroups import memory_cgroup as make_cgroup

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def memory_cgroup() -> Iterator[Callable[..., Cgroup]]:
    """A function that makes real cgroups: ``memory_cgroup(limit, parent=None)``."""
    with ExitStack() as stack:
        yield lambda limit, parent=None: stack.enter_context(make_cgroup(limit, parent=parent))


@dataclass
class Host:
    """A made-up host's /proc and /sys/fs/cgroup, for the layouts that this kernel does not have."""

    proc: Path
    cgroup_root: Path

    def write(self, file: str, content: object) -> None:
        """Writes a file below the folder that holds both trees."""
        path = self.proc.parent / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")

    def available(self, amount: int) -> None:
        self.write("proc/meminfo", f"MemTotal: 999 kB\nMemAvailable: {amount // 1024} kB")

    def belongs_to(self, *lines: str) -> None:
        self.write("proc/self/cgroup", "\n".join(lines))

    def mounts(self, *lines: str) -> None:
        """Writes mountinfo lines; ``{}`` in them stands for the folder that holds the trees."""
        text = "\n".join(lines).replace("{}", str(self.proc.parent))
        self.write("proc/self/mountinfo", text)

    def v1(self, group: str, limit: int, usage: int, **stat: int) -> None:
        """Make a group of version 1 below cgroup/memory."""
        folder = f"cgroup/memory/{group}"
        self.write(f"{folder}/memory.limit_in_bytes", limit)
        self.write(f"{folder}/memory.usage_in_bytes", usage)
        self._stat(folder, stat)

    def v2(self, group: str, limit: int | str, current: int, **stat: int) -> None:
        """Make a group of version 2 below cgroup."""
        folder = f"cgroup/{group}"
        self.write(f"{folder}/memory.max", limit)
        self.write(f"{folder}/memory.current", current)
        self._stat(folder, stat)

    def _stat(self, folder: str, stat: dict[str, int]) -> None:
        lines = [f"{name} {value}" for name, value in {"anon": 1, **stat}.items()]
        self.write(f"{folder}/memory.stat", "\n".join(lines))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with 64 GiB available and no control groups yet."""
    host = Host(tmp_path / "proc", tmp_path / "cgroup")
    host.cgroup_root.mkdir()
    host.available(64 * GIB)
    host.write("proc/self/status", f"RssAnon:  {100 * 1024} kB")
    return host


@dataclass
class ApiServer:
    """A loopback server that answers GETs as the Kubernetes API server does."""

    url: str
    service_account: Path
    objects: dict[str, Any] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    hang: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    environ: ClassVar[dict[str, str]] = {"POD_NAME": "bloom-0", "POD_NAMESPACE": "models"}

    def add_pod(self, pod: dict[str, Any]) -> None:
        self.objects["/api/v1/namespaces/models/pods/bloom-0"] = pod

    def add_claim(self, name: str, capacity: str | None) -> None:
        status = {"capacity": {"storage": capacity}} if capacity else {"phase": "Pending"}
        path = f"/api/v1/namespaces/models/persistentvolumeclaims/{name}"
        self.objects[path] = {"status": status}


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[ApiServer]:
    """The server, with a service account that has a token."""
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text("the-token\n")
    (account / "namespace").write_text("models")
    listener = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server = ApiServer(f"http://127.0.0.1:{listener.server_port}", account)
    listener.RequestHandlerClass = _handler(server)  # type: ignore[assignment]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.ended.set()
    listener.shutdown()
    thread.join()
    listener.server_close()


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append((self.path, self.headers["Authorization"]))
            if server.hang:
                server.ended.wait(10)
                return
            exists = self.path in server.objects
            status = server.status.get(self.path, 200 if exists else 404)
            content = server.objects.get(self.path) if status == 200 else {"kind": "Status"}
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    return Handler
