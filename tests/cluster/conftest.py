"""The cluster that CLUSTER_TEST_KUBECONFIG leads to, and what the tests share in it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import objects
from tests.cluster.kubectl import READY_SECONDS, Cluster, Object
from tests.cluster.node import VARIABLE, Node
from tests.server.test_clients import over_v1
from tests.skips import skip_or_fail

KUBECONFIG = "CLUSTER_TEST_KUBECONFIG"
IMAGE = "accelerate-predictor:0.1.0"
"""As `manifests/` names it; another in CLUSTER_TEST_IMAGE."""

ISVC = "serving.kserve.io/inferenceservice"
DEMO = f"{ISVC}=demo"
GREEDY = {"max_new_tokens": 8, "temperature": 0}
GPUS = ("nvidia.com/gpu", "nvidia.com/mig-1g.10gb")


@dataclass(frozen=True)
class Reached:
    """A predictor through `kubectl port-forward`."""

    url: str
    grpc: str
    name: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a cluster is asked may take long: it waits for pods, a few seconds each."""
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Gives a namespace that lets in restricted pods only, with manifests/ in it; takes it away.

    A demo that does not fit is there too, ``unfit``: what KServe says of it takes ten minutes.
    """
    kubeconfig = os.environ.get(KUBECONFIG)
    if not kubeconfig:
        skip_or_fail(f"{KUBECONFIG} names no cluster", "REQUIRE_CLUSTER")
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed", "REQUIRE_CLUSTER")
    image = os.environ.get("CLUSTER_TEST_IMAGE", IMAGE)
    found = Cluster(kubeconfig, f"predictor-{uuid.uuid4().hex[:8]}", image)
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": found.namespace, "labels": labels},
    }
    with found.applied([namespace]):
        account = ("serviceaccount", "default")  # without which no pod is let in
        found.until(lambda: found.get(*account), "the namespace's own service account", 60)
        found.apply(objects.base(image))
        found.apply(objects.demo("unfit", max_memory='{"cpu":"1MiB"}'))
        yield found


@pytest.fixture(scope="session")
def node() -> Node:
    """The machine that is the node, if the tests run on it."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} is not set: the node's processes are not of this machine")
    return Node(Path(folder))


@pytest.fixture(scope="session")
def demo_replies(cluster: Cluster) -> list[str]:
    """Brings the demo up, offloaded to a store on its claim; gives its replies to PROMPTS."""
    cluster.apply(objects.demo("demo", offload_store="always"))
    return replies(cluster, await_service(cluster, "demo"))


@pytest.fixture
def demo(cluster: Cluster, demo_replies: list[str]) -> str:
    """The name of the demo's pod, which is ready."""
    return cluster.ready_pod(DEMO)


@pytest.fixture
def reached(cluster: Cluster, demo: str) -> Iterator[Reached]:
    with cluster.forward(demo, 8080) as rest, cluster.forward(demo, 8081) as grpc:
        yield Reached(f"http://{rest}", grpc, "demo")


@pytest.fixture(scope="session")
def hub(cluster: Cluster) -> str:
    """A hub on the cluster, where every repository is the demo model; gives its address."""
    base = objects.base(cluster.image)
    arguments = ("/opt/demo-model", "8000")
    pod = objects.program("hub", cluster.image, "hub.py", *arguments, like=base)
    cluster.apply([pod, objects.port("hub", 8000)])
    cluster.kubectl("wait", "pod/hub", "--for=condition=Ready", f"--timeout={READY_SECONDS}s")
    return f"http://hub.{cluster.namespace}"


@pytest.fixture(scope="session")
def storage_container(cluster: Cluster, hub: str) -> Iterator[str]:
    """A ClusterStorageContainer like KServe's own, that knows this hub, with the README's patch.

    It is another than KServe's, which other namespaces may be using; an InferenceService names it
    in ``storageContainerName``.
    """
    own = storage_container_like_kserves(cluster, cluster.namespace, hub)
    own["spec"]["container"]["securityContext"] = readme_patch()
    with cluster.applied([own]):
        yield cluster.namespace


def storage_container_like_kserves(cluster: Cluster, name: str, hub: str) -> Object:
    """Returns a ClusterStorageContainer as KServe's install YAML has it, but for the hub."""
    spec = cluster.get("clusterstoragecontainer", "default")["spec"]
    spec["container"].pop("securityContext", None)
    spec["container"]["env"] = [
        {"name": "HF_ENDPOINT", "value": hub},
        {"name": "HF_HUB_DISABLE_XET", "value": "1"},
    ]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterStorageContainer",
        "metadata": {"name": name},
        "spec": spec,
    }


def readme_patch() -> Object:
    """Returns the securityContext that the README tells to give KServe's storage-initializer."""
    page = (objects.ROOT / "docs" / "guides" / "manifests.md").read_text()
    begin = "kubectl patch clusterstoragecontainer default --type=merge --patch='"
    patch: Object = json.loads(page.split(begin)[1].split("'\n")[0])
    found: Object = patch["spec"]["container"]["securityContext"]
    return found


def await_service(cluster: Cluster, service: str) -> str:
    """Returns the pod of an InferenceService that is ready."""
    pod = cluster.ready_pod(f"{ISVC}={service}")
    wait = (f"inferenceservice/{service}", "--for=condition=Ready", f"--timeout={READY_SECONDS}s")
    cluster.kubectl("wait", *wait, seconds=READY_SECONDS + 60)
    return pod


def replies(cluster: Cluster, pod: str, model: str = "demo") -> list[str]:
    """Returns what a pod replies to PROMPTS, greedily."""
    with cluster.forward(pod, 8080) as rest:
        return over_v1(Reached(f"http://{rest}", "", model), **GREEDY)


def containers(pod: Object) -> list[str]:
    """Returns the names of a pod's containers, those of its start first."""
    spec = pod["spec"]
    return [one["name"] for one in (*spec.get("initContainers", ()), *spec["containers"])]
