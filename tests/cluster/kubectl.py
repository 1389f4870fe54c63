"""A cluster as the tests use it: `kubectl` and `helm`, with one kubeconfig, in one namespace."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

Object = dict[str, Any]
Found = TypeVar("Found")

CONTAINER = "kserve-container"
READY_SECONDS = 600
WHY_IT_ENDED = (
    "{.items[*].status['initContainerStatuses','containerStatuses'][*]"
    ".lastState.terminated.message}"
)
"""What the README and the chart's notes tell to ask pods for."""


class Wrong(AssertionError):
    """What was seen must never be seen; waiting does not mend it."""


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
        return run(["kubectl", *self._where(), *arguments], given, seconds)

    def helm(self, *arguments: str, values: Object | None = None) -> str:
        """Returns what `helm` prints; values go to its standard input.

        Raises:
            AssertionError: It failed, with what it says.
        """
        files = () if values is None else ("--values=-",)
        command = ["helm", *self._where(), *arguments, *files]
        return run(command, None if values is None else json.dumps(values), READY_SECONDS)

    def apply(self, objects: Sequence[Object], *flags: str) -> str:
        """Makes objects, or makes them so; returns what became of each.

        Raises:
            AssertionError: The API server refuses one, or warns of one.
        """
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        how = ("--warnings-as-errors", *flags)
        return self.kubectl("apply", "--filename=-", *how, given=json.dumps(listed))

    @contextmanager
    def applied(self, objects: Sequence[Object]) -> Iterator[None]:
        """Makes objects, and lets them go at the end, whatever becomes of them."""
        try:
            self.apply(objects)
            yield
        finally:
            self.delete(objects)

    def delete(self, objects: Sequence[Object]) -> None:
        """Lets objects go, without waiting until they are gone."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        how = ("--ignore-not-found", "--wait=false")
        self.kubectl("delete", "--filename=-", *how, given=json.dumps(listed))

    def apis(self) -> set[str]:
        """Returns the groups and versions of what the cluster knows."""
        return set(self.kubectl("api-versions").split())

    def get(self, *what: str) -> Object:
        """Returns an object, or with a selector a list of them."""
        found: Object = json.loads(self.kubectl("get", *what, "--output=json"))
        return found

    def pods(self, selector: str) -> list[Object]:
        """Returns the pods that are not on their way out."""
        found = self.get("pods", f"--selector={selector}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def why_it_ended(self, selector: str) -> str:
        """Returns the sentence that a container ended with, or nothing."""
        where = (f"--selector={selector}", f"--output=jsonpath={WHY_IT_ENDED}")
        return self.kubectl("get", "pods", *where)

    def look(self, service: str) -> bool:
        """Makes KServe look at the pods of an InferenceService, as the README tells to."""
        now = f"looked-at={time.time()}"
        self.kubectl("annotate", "--overwrite", f"deployment/{service}-predictor", now)
        return True

    def log(self, pod: str, *more: str) -> str:
        """Returns all that the predictor in a pod wrote so far."""
        return self.kubectl("logs", pod, f"--container={CONTAINER}", *more)

    def python(self, pod: str, code: str, *, container: str = CONTAINER) -> str:
        """Runs a program with a container's own Python, inside of it; returns what it printed."""
        return self.kubectl("exec", pod, f"--container={container}", "--", "python3", "-c", code)

    def until(
        self, look: Callable[[], Found | None], what: str, seconds: float = READY_SECONDS
    ) -> Found:
        """Returns the first thing seen that counts; what is not there yet may not be seen at all.

        What must never be seen is a `Wrong`, which is passed on at once.

        Raises:
            AssertionError: Nothing counted in time; it shows how the namespace is.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = look()
                if found:
                    return found
            except Wrong:
                raise
            except (AssertionError, LookupError, ValueError, httpx.HTTPError):
                pass
            time.sleep(0.5)
        raise AssertionError(f"waited {seconds} s for {what}:\n{self.state()}")

    def ready_pods(self, selector: str, count: int, *, other_than: Iterable[str] = ()) -> list[str]:
        """Returns the names of so many pods, once there are no others and all are ready."""
        old = set(other_than)

        def look() -> list[str] | None:
            pods = self.pods(selector)
            names = [pod["metadata"]["name"] for pod in pods]
            done = len(pods) == count and all(map(is_ready, pods)) and old.isdisjoint(names)
            return names if done else None

        return self.until(look, f"{count} ready pods of {selector}")

    def ready_pod(self, selector: str, *, other_than: str = "") -> str:
        """Returns the name of the one pod, once it is ready."""
        (pod,) = self.ready_pods(selector, 1, other_than=(other_than,))
        return pod

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


def is_ready(pod: Object) -> bool:
    """Whether a pod's condition says that it is ready."""
    conditions = pod["status"].get("conditions", ())
    return [one["status"] for one in conditions if one["type"] == "Ready"] == ["True"]


def run(command: Sequence[str], given: str | None = None, seconds: float = 120) -> str:
    """Returns what a command prints, which must succeed.

    Raises:
        AssertionError: It failed, with what it says.
    """
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=seconds, check=False
    )
    shown = " ".join(command)
    assert done.returncode == 0, f"{shown}: {done.stderr.strip()}"
    return done.stdout
