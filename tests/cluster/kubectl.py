"""A cluster as the tests use it: `kubectl` and `helm`, with one kubeconfig, in one namespace."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

Object = dict[str, Any]
Found = TypeVar("Found")

CONTAINER = "kserve-container"
READY_SECONDS = 600


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster, and what is tried there.

    Attributes:
        kubeconfig: The file that leads to the cluster.
        namespace: The namespace.
        image: The predictor's image, as the cluster's nodes can pull or have it.
    """

    kubeconfig: str
    namespace: str
    image: str

    def kubectl(self, *arguments: str, given: str | None = None, seconds: float = 120) -> str:
        """Returns what `kubectl` prints.

        Raises:
            AssertionError: It failed, with what it says.
        """
        return _run(["kubectl", *self._where(), *arguments], given, seconds)

    def helm(self, *arguments: str, values: Object | None = None) -> str:
        """Returns what `helm` prints; values go to its standard input.

        Raises:
            AssertionError: It failed, with what it says.
        """
        files = () if values is None else ("--values=-",)
        command = ["helm", *self._where(), *arguments, *files]
        return _run(command, None if values is None else json.dumps(values), READY_SECONDS)

    def apply(self, objects: Sequence[Object]) -> None:
        """Makes objects, or makes them so."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--filename=-", given=json.dumps(listed))

    def get(self, *what: str) -> Object:
        """Returns an object, or with a selector a list of them."""
        found: Object = json.loads(self.kubectl("get", *what, "--output=json"))
        return found

    def pods(self, selector: str) -> list[Object]:
        """Returns the pods that are not on their way out."""
        found = self.get("pods", f"--selector={selector}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def until(
        self, look: Callable[[], Found | None], what: str, seconds: float = READY_SECONDS
    ) -> Found:
        """Returns the first thing seen that counts; what is not there yet may not be seen at all.

        Raises:
            AssertionError: Nothing counted in time; it shows how the namespace is.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = look()
                if found:
                    return found
            except (AssertionError, LookupError, ValueError, httpx.HTTPError):
                pass
            time.sleep(2)
        raise AssertionError(f"waited {seconds} s for {what}:\n{self.state()}")

    def ready_pod(self, selector: str, *, other_than: str = "") -> str:
        """Returns the name of the one pod, once it is ready."""

        def look() -> str | None:
            (pod,) = self.pods(selector)
            name: str = pod["metadata"]["name"]
            ready = [c["status"] for c in pod["status"]["conditions"] if c["type"] == "Ready"]
            return name if ready == ["True"] and name != other_than else None

        return self.until(look, f"a ready pod of {selector}")

    @contextmanager
    def forward(self, pod: str, port: int) -> Iterator[str]:
        """Gives host and port on this machine that lead to a port of a pod."""
        command = ["kubectl", *self._where(), "port-forward", f"pod/{pod}", f":{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                match = re.match(r"Forwarding from (127\.0\.0\.1:\d+) -> ", line)
                assert match is not None, f"kubectl port-forward said {line!r}"
                yield match[1]
            finally:
                process.kill()

    def state(self) -> str:
        """Returns what people would look at to see what is wrong; never fails."""
        questions = (
            ("get", "pods,pvc,deployments,inferenceservices", "--output=wide"),
            ("get", "inferenceservices", "--output=jsonpath={.items[*].status}"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "--selector=serving.kserve.io/inferenceservice", f"-c={CONTAINER}"),
        )
        commands = [["kubectl", *self._where(), *question] for question in questions]
        answers = [
            subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            for command in commands
        ]
        return "\n\n".join(answer.stdout + answer.stderr for answer in answers)

    def _where(self) -> tuple[str, str]:
        return f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}"


def _run(command: Sequence[str], given: str | None, seconds: float) -> str:
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=seconds, check=False
    )
    shown = " ".join(command)
    assert done.returncode == 0, f"{shown}: {done.stderr.strip()}"
    return done.stdout
