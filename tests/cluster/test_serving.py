"""The demo on a cluster: its replies, its pod and its plan.

    CLUSTER_TEST_KUBECONFIG=~/.kube/config pytest tests/cluster

The tests need a cluster with KServe in Standard mode and a default StorageClass, `kubectl`, and
`helm`. The nodes must have or pull the predictor's image (CLUSTER_TEST_IMAGE, by default
accelerate-predictor:0.1.0) and that of KServe's storage-initializer. All objects are in one new
namespace, except those without a namespace: a StorageClass, a ClusterStorageContainer, volumes, and
the GPUs that the nodes advertise. If CLUSTER_TEST_PROCESSES names the processes of a node that is
this machine (see `tests.cluster.node`), the tests end and restart them.
"""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from predictor.quantity import parse_bytes
from tests.cluster.conftest import GREEDY, Reached, containers
from tests.cluster.kubectl import Cluster, Object
from tests.server.test_clients import PROMPTS, over_grpc, over_v1, over_v2

pytestmark = pytest.mark.cluster


def test_every_protocol_gives_the_same_replies(reached: Reached) -> None:
    replies = over_v1(reached, **GREEDY)

    assert all(replies)
    assert over_v2(reached, **GREEDY) == replies
    assert over_grpc(reached, **GREEDY) == replies
    with openai.OpenAI(base_url=f"{reached.url}/openai/v1", api_key="none") as client:
        parameters = {"model": "demo", "max_tokens": 8, "temperature": 0}
        choices = client.completions.create(prompt=PROMPTS, **parameters).choices
    assert [choice.text for choice in choices] == replies


def test_the_pod_has_the_expected_containers_and_volumes(cluster: Cluster, demo: str) -> None:
    """KServe adds an agent and a ConfigMap if it takes a predictor for a multi-model server."""
    pod = cluster.get("pod", demo)
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}

    assert containers(pod) == ["kserve-container"]
    assert {name for name in volumes if not name.startswith("kube-api-access-")} == {
        "shm",
        "tmp",
        "offload",
    }
    maps = {one["metadata"]["name"] for one in cluster.get("configmaps")["items"]}
    assert maps == {"kube-root-ca.crt"}


def test_nothing_warns_of_the_demo(cluster: Cluster, demo: str) -> None:
    """Except for the startup probe, which fails until the model is loaded."""
    warnings = cluster.get("events", "--field-selector=type=Warning")["items"]
    about_demo = [
        event["message"]
        for event in warnings
        if event["involvedObject"]["name"] == demo
        and not event["message"].startswith("Startup probe failed: ")
    ]

    assert about_demo == []


def test_the_model_is_planned_within_the_pods_resources(cluster: Cluster, reached: Reached) -> None:
    tiers = placement(reached.url, "demo")["tiers"]
    owned = {tier["name"]: tier["owned"] for tier in tiers}
    claim = cluster.get("pvc", "demo-offload")["status"]["capacity"]["storage"]

    assert 1024**3 < owned["cpu"] < 2 * 1024**3  # the limit less the process itself
    assert 0 < owned["disk"] <= parse_bytes(claim)


def test_blocks_are_offloaded_to_the_claim(cluster: Cluster, demo: str) -> None:
    code = "import pathlib; [print(f.name) for f in pathlib.Path('/offload').glob('*.store')]"

    assert cluster.python(demo, code)


def test_the_pod_may_read_itself(cluster: Cluster, demo: str) -> None:
    """Without its Role, a log line reports that it cannot; see `predictor.pod.own_pod`."""
    log = cluster.log(demo)

    assert "is ready after" in log
    assert "cannot be read" not in log


def placement(url: str, model: str) -> Object:
    """Return the placement in a model's metadata."""
    response = httpx.get(f"{url}/v2/models/{model}", timeout=30)
    assert response.status_code == 200, response.text
    placed: Object = json.loads(response.json()["properties"]["placement"])
    return placed
