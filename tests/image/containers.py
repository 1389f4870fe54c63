"""Real containers for tests, by the `docker` command (or what the variable DOCKER names)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from tests.test_readme import ROOT, commands

DOCKER = os.environ.get("DOCKER", "docker")
PORTS = {"8080:8080": "127.0.0.1::8080", "8081:8081": "127.0.0.1::8081"}
"""The README's ports, and free ones."""

_SECONDS_TO_START = 240


def docker(*words: str) -> str:
    """Run one of Docker's commands, which must succeed; return its output."""
    done = subprocess.run([DOCKER, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {shlex.join(words)}: {done.stderr}"
    return done.stdout.strip()


def make_image(tag: str, flags: str = "", **variables: str) -> None:
    """Build the image by ``make image``, with the host's network and what it knows of registries.

    The image that had this name, several GB, goes unless it has another one.

    Args:
        tag: The image's name.
        flags: Further ones of ``docker build``.
        variables: Further ones of the Makefile.
    """
    before = _image(tag)
    named = {"DOCKER": DOCKER, "IMAGE": tag, "BUILD_FLAGS": f"--network=host {flags}", **variables}
    done = subprocess.run(
        ["make", "image", *(f"{name}={value}" for name, value in named.items())],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    if before and _image(before, "{{len .RepoTags}}") == "0":
        subprocess.run([DOCKER, "image", "rm", before], capture_output=True, check=False)


def _image(name: str, field: str = "{{.Id}}") -> str:
    """A field of an image, or nothing where there is no such image."""
    command = [DOCKER, "image", "inspect", "--format", field, name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def run_of_the_readme(holding: str, instead: Mapping[str, str]) -> list[str]:
    """Return the arguments after ``docker run`` in the README's line that holds a word.

    Args:
        holding: A word of that line and of no other.
        instead: What stands in the line, and what the test has instead.
    """
    [line] = [line for line in commands() if line.startswith("docker run") and holding in line]
    for written, here in {"--rm ": "", **instead}.items():
        assert written in line, written
        line = line.replace(written, here)
    return shlex.split(line)[2:]


class Container:
    """A started container, with the interface of `tests.server.process.Served`.

    Attributes:
        id: Docker's name of it.
        name: The model's name.
    """

    def __init__(self, identity: str, name: str) -> None:
        self.id = identity
        self.name = name

    @property
    def log(self) -> str:
        """Return its output so far."""
        done = subprocess.run([DOCKER, "logs", self.id], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    @property
    def url(self) -> str:
        """Return the REST server's URL at the published port."""
        return f"http://{docker('port', self.id, '8080')}"

    @property
    def grpc(self) -> str:
        """Return the gRPC server's published host and port."""
        return docker("port", self.id, "8081")

    @property
    def state(self) -> dict[str, Any]:
        """Return Docker's state of its process."""
        state: dict[str, Any] = json.loads(docker("inspect", "--format={{json .State}}", self.id))
        return state

    def await_ready(self) -> Container:
        """Wait until the model is ready."""
        deadline = time.monotonic() + _SECONDS_TO_START
        while "is ready after" not in self.log:
            assert self.state["Running"], self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.2)
        return self

    def await_end(self) -> int:
        """Wait until it ends; return its exit code."""
        return int(docker("wait", self.id))

    def predict(self, text: str, **parameters: Any) -> httpx.Response:
        """Send one V1 request."""
        body = {"instances": [text], "parameters": parameters}
        return httpx.post(f"{self.url}/v1/models/{self.name}:predict", json=body, timeout=120)

    def python(self, program: str) -> str:
        """Run a program with the container's own Python; return its output."""
        return docker("exec", self.id, "python", "-c", program)

    def terminate(self) -> None:
        """Send SIGTERM to its first process, as Kubernetes does."""
        docker("kill", "--signal=TERM", self.id)

    def written(self) -> set[str]:
        """Return the new and changed files in its own file system, without mounts."""
        return set(docker("diff", self.id).splitlines())


@contextmanager
def container(*words: str, name: str) -> Iterator[Container]:
    """Start a container, as ``docker run`` does with these arguments, and remove it at the end."""
    identity = docker("run", "--detach", *words)
    try:
        yield Container(identity, name)
    finally:
        docker("rm", "--force", identity)
