"""The cluster of CLUSTER_TEST_KUBECONFIG, and the fixtures that the tests share."""

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
"""The image that `manifests/` names. CLUSTER_TEST_IMAGE overrides it."""

ISVC = "serving.kserve.io/inferenceservice"
DEMO = f"{ISVC}=demo"
GREEDY = {"max_new_tokens": 8, "temperature": 0}
GPUS = ("nvidia.com/gpu", "nvidia.com/mig-1g.10gb")


@dataclass(frozen=True)
class Reached:
    """A predictor reached through ``kubectl port-forward``."""

    url: str
    grpc: str
    name: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Raise the time limit of cluster tests, which wait for pods."""
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give a namespace for restricted pods only, with manifests/ applied, and delete it at the end.

    It also holds ``unfit``, a demo that does not fit: KServe takes ten minutes to report it.
    """
    kubeconfig = os.environ.get(KUBECONFIG)
    if not kubeconfig:
        skip_or_fail(f"{KUBECONFIG} names no cluster", "REQUIRE_CLUSTER")
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed", "REQUIRE_CLUSTER")
    image = os.environ.get("CLUSTER_TEST_IMAGE", IMAGE)
    created = Cluster(kubeconfig, f"predictor-{uuid.uuid4().hex[:8]}", image)
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": created.namespace, "labels": labels},
    }
    with created.applied([namespace]):
        account = ("serviceaccount", "default")  # no pod is admitted before it exists
        created.until(lambda: created.get(*account), "the namespace's own service account", 60)
        created.apply(objects.base(image))
        created.apply(objects.demo("unfit", max_memory='{"cpu":"1MiB"}'))
        yield created


@pytest.fixture(scope="session")
def node() -> Node:
    """Return the cluster's one node, if the tests run on it."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} is not set: the node is another machine")
    return Node(Path(folder))


@pytest.fixture(scope="session")
def demo_replies(cluster: Cluster) -> list[str]:
    """Start the demo, offloaded to a store on its claim; return its replies to PROMPTS."""
    cluster.apply(objects.demo("demo", offload_store="always"))
    return replies(cluster, await_service(cluster, "demo"))


@pytest.fixture
def demo(cluster: Cluster, demo_replies: list[str]) -> str:
    """Return the name of the demo's pod, once it is ready."""
    return cluster.ready_pod(DEMO)


@pytest.fixture
def reached(cluster: Cluster, demo: str) -> Iterator[Reached]:
    with cluster.forward(demo, 8080) as rest, cluster.forward(demo, 8081) as grpc:
        yield Reached(f"http://{rest}", grpc, "demo")


@pytest.fixture(scope="session")
def hub(cluster: Cluster) -> str:
    """Start a hub on the cluster where every repository is the demo model; return its address."""
    base = objects.base(cluster.image)
    arguments = ("/opt/demo-model", "8000")
    pod = objects.program("hub", cluster.image, "hub.py", *arguments, like=base)
    cluster.apply([pod, objects.port("hub", 8000)])
    cluster.kubectl("wait", "pod/hub", "--for=condition=Ready", f"--timeout={READY_SECONDS}s")
    return f"http://hub.{cluster.namespace}"


@pytest.fixture(scope="session")
def storage_container(cluster: Cluster, hub: str) -> Iterator[str]:
    """Give the name of a ClusterStorageContainer for this hub, with the documented patch.

    It is a copy of KServe's, which other namespaces may use. An InferenceService names it in
    ``storageContainerName``.
    """
    own = storage_container_like_kserves(cluster, cluster.namespace, hub)
    own["spec"]["container"]["securityContext"] = documented_patch()
    with cluster.applied([own]):
        yield cluster.namespace


def storage_container_like_kserves(cluster: Cluster, name: str, hub: str) -> Object:
    """Return a ClusterStorageContainer as in KServe's install YAML, except for the hub."""
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


def documented_patch() -> Object:
    """Return the securityContext with which the documentation patches the storage-initializer."""
    page = (objects.ROOT / "docs" / "guides" / "manifests.md").read_text()
    begin = "kubectl patch clusterstoragecontainer default --type=merge --patch='"
    patch: Object = json.loads(page.split(begin)[1].split("'\n")[0])
    security_context: Object = patch["spec"]["container"]["securityContext"]
    return security_context


def await_service(cluster: Cluster, service: str) -> str:
    """Wait until an InferenceService is ready; return its pod."""
    pod = cluster.ready_pod(f"{ISVC}={service}")
    wait = (f"inferenceservice/{service}", "--for=condition=Ready", f"--timeout={READY_SECONDS}s")
    cluster.kubectl("wait", *wait, seconds=READY_SECONDS + 60)
    return pod


def replies(cluster: Cluster, pod: str, model: str = "demo") -> list[str]:
    """Return a pod's greedy replies to PROMPTS."""
    with cluster.forward(pod, 8080) as rest:
        return over_v1(Reached(f"http://{rest}", "", model), **GREEDY)


def containers(pod: Object) -> list[str]:
    """Return the names of a pod's containers, init containers first."""
    spec = pod["spec"]
    return [one["name"] for one in (*spec.get("initContainers", ()), *spec["containers"])]
