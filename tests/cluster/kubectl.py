"""A cluster for the tests: `kubectl` and `helm`, with one kubeconfig, in one namespace."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx

Object = dict[str, Any]
Result = TypeVar("Found")

CONTAINER = "kserve-container"
READY_SECONDS = 600
WHY_IT_ENDED = (
    "{.items[*].status['initContainerStatuses','containerStatuses'][*]"
    ".lastState.terminated.message}"
)
"""The JSONPath in the documentation and the chart's notes for the reason why a pod ended."""


class ForbiddenState(AssertionError):
    """A state that must never occur. Waiting does not mend it."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster.

    Attributes:
        kubeconfig: The kubeconfig file of the cluster.
        namespace: The namespace.
        image: The predictor's image, which the cluster's nodes have or can pull.
    """

    kubeconfig: str
    namespace: str
    image: str

    def kubectl(self, *arguments: str, given: str | None = None, seconds: float = 120) -> str:
        """Run ``kubectl`` and return its output.

        Raises:
            AssertionError: It failed; the message is its error.
        """
        return run(["kubectl", *self._target(), *arguments], given, seconds)

    def helm(self, *arguments: str, values: Object | None = None) -> str:
        """Run ``helm`` with values on its standard input, and return its output.

        Raises:
            AssertionError: It failed; the message is its error.
        """
        files = () if values is None else ("--values=-",)
        command = ["helm", *self._target(), *arguments, *files]
        return run(command, None if values is None else json.dumps(values), READY_SECONDS)

    def apply(self, objects: Sequence[Object], *flags: str) -> str:
        """Apply objects, each to the namespace it names; return kubectl's line for each.

        Raises:
            AssertionError: The API server refuses an object, or warns of one.
        """
        of_namespace: dict[str, list[Object]] = {}
        for obj in objects:
            name = obj.get("metadata", {}).get("namespace", self.namespace)
            of_namespace.setdefault(name, []).append(obj)
        how = ("apply", "--filename=-", "--warnings-as-errors", *flags)
        lines = []
        for name, items in of_namespace.items():
            given = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
            lines.append(replace(self, namespace=name).kubectl(*how, given=given))
        return "".join(lines)

    @contextmanager
    def applied(self, objects: Sequence[Object]) -> Iterator[None]:
        """Apply objects, and delete them at the end, even after an error."""
        try:
            self.apply(objects)
            yield
        finally:
            self.delete(objects)

    def delete(self, objects: Sequence[Object]) -> None:
        """Delete objects without waiting until they are gone."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        how = ("--ignore-not-found", "--wait=false")
        self.kubectl("delete", "--filename=-", *how, given=json.dumps(listed))

    def apis(self) -> set[str]:
        """Return the API groups and versions of the cluster."""
        return set(self.kubectl("api-versions").split())

    def get(self, *what: str) -> Object:
        """Return an object, or a list of objects if there is a selector."""
        obj: Object = json.loads(self.kubectl("get", *what, "--output=json"))
        return obj

    def pods(self, selector: str) -> list[Object]:
        """Return the pods that are not being deleted."""
        pods = self.get("pods", f"--selector={selector}")["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def why_it_ended(self, selector: str) -> str:
        """Return the termination message of a container, or an empty string."""
        where = (f"--selector={selector}", f"--output=jsonpath={WHY_IT_ENDED}")
        return self.kubectl("get", "pods", *where)

    def reconcile(self, service: str) -> bool:
        """Make KServe reconcile an InferenceService, by the documented command."""
        now = f"looked-at={time.time()}"
        self.kubectl("annotate", "--overwrite", f"deployment/{service}-predictor", now)
        return True

    def log(self, pod: str, *more: str) -> str:
        """Return the predictor's log in a pod."""
        return self.kubectl("logs", pod, f"--container={CONTAINER}", *more)

    def python(self, pod: str, code: str, *, container: str = CONTAINER) -> str:
        """Run code with a container's own Python, inside the container; return its output."""
        return self.kubectl("exec", pod, f"--container={container}", "--", "python3", "-c", code)

    def until(
        self, poll: Callable[[], Result | None], description: str, seconds: float = READY_SECONDS
    ) -> Result:
        """Poll until there is a true result, and return it. Errors count as no result yet.

        Args:
            poll: Returns the result, if there is one.
            description: The awaited result, for the error.
            seconds: The time limit.

        Raises:
            ForbiddenState: `poll` raised it.
            AssertionError: There was no result in time; the message shows the namespace's state.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                result = poll()
                if result:
                    return result
            except ForbiddenState:
                raise
            except (AssertionError, LookupError, ValueError, httpx.HTTPError):
                pass
            time.sleep(0.5)
        raise AssertionError(f"waited {seconds} s for {description}:\n{self.state()}")

    def ready_pods(self, selector: str, count: int, *, other_than: Iterable[str] = ()) -> list[str]:
        """Return the names of `count` pods, once there are no others and all are ready."""
        old = set(other_than)

        def ready_names() -> list[str] | None:
            pods = self.pods(selector)
            names = [pod["metadata"]["name"] for pod in pods]
            done = len(pods) == count and all(map(is_ready, pods)) and old.isdisjoint(names)
            return names if done else None

        return self.until(ready_names, f"{count} ready pods of {selector}")

    def ready_pod(self, selector: str, *, other_than: str = "") -> str:
        """Return the name of the one pod, once it is ready."""
        (pod,) = self.ready_pods(selector, 1, other_than=(other_than,))
        return pod

    @contextmanager
    def forward(self, pod: str, port: int) -> Iterator[str]:
        """Give a host and port on this machine that are forwarded to a port of a pod."""
        command = ["kubectl", *self._target(), "port-forward", f"pod/{pod}", f":{port}"]
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
        """Return the state of the namespace for a failure message; never fail."""
        queries = (
            ("get", "pods,pvc,deployments,inferenceservices", "--output=wide"),
            ("get", "inferenceservices", "--output=jsonpath={.items[*].status}"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "--selector=serving.kserve.io/inferenceservice", f"-c={CONTAINER}"),
        )
        commands = [["kubectl", *self._target(), *query] for query in queries]
        results = [
            subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            for command in commands
        ]
        return "\n\n".join(result.stdout + result.stderr for result in results)

    def _target(self) -> tuple[str, str]:
        return f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}"


def is_ready(pod: Object) -> bool:
    """Return whether a pod's condition ``Ready`` is true."""
    conditions = pod["status"].get("conditions", ())
    return [one["status"] for one in conditions if one["type"] == "Ready"] == ["True"]


def run(command: Sequence[str], given: str | None = None, seconds: float = 120) -> str:
    """Run a command, which must succeed, and return its output.

    Raises:
        AssertionError: It failed; the message is its error.
    """
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=seconds, check=False
    )
    shown = " ".join(command)
    assert done.returncode == 0, f"{shown}: {done.stderr.strip()}"
    return done.stdout
