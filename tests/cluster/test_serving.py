"""The demo on a cluster: it answers, it is what was meant, and it says what is wrong.

    CLUSTER_TEST_KUBECONFIG=~/.kube/config pytest tests/cluster

Wants a cluster with KServe in Standard mode and a default StorageClass, `kubectl`, `helm`, the
predictor's image where its nodes find it (CLUSTER_TEST_IMAGE; accelerate-predictor:0.1.0 if it is
not set), and that of KServe's storage-initializer. Everything happens in a namespace of its own,
but for what has none: a StorageClass, a ClusterStorageContainer, volumes, GPUs that the nodes say
they have. Where CLUSTER_TEST_PROCESSES names the processes of a node that is this machine (see
`tests.cluster.node`), they are ended and started again.
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
        asked = {"model": "demo", "max_tokens": 8, "temperature": 0}
        choices = client.completions.create(prompt=PROMPTS, **asked).choices
    assert [choice.text for choice in choices] == replies


def test_the_pod_has_the_containers_and_volumes_that_are_meant(cluster: Cluster, demo: str) -> None:
    """KServe adds an agent and a ConfigMap where it takes a predictor for a multi-model server."""
    pod = cluster.get("pod", demo)
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}

    assert containers(pod) == ["kserve-container"]
    assert {name for name in volumes if not name.startswith("kube-api-access-")} == {
        "shm",
        "tmp",
        "offload",
    }
    maps = {found["metadata"]["name"] for found in cluster.get("configmaps")["items"]}
    assert maps == {"kube-root-ca.crt"}


def test_nothing_warns_of_the_demo(cluster: Cluster, demo: str) -> None:
    """But for the startup probe, which fails until the model is loaded, and KServe of itself."""
    warnings = cluster.get("events", "--field-selector=type=Warning")["items"]
    about_demo = [
        event["message"]
        for event in warnings
        if event["involvedObject"]["name"] == demo
        and not event["message"].startswith("Startup probe failed: ")
    ]

    assert about_demo == []


def test_the_model_is_planned_within_what_the_pod_was_given(
    cluster: Cluster, reached: Reached
) -> None:
    tiers = placement(reached.url, "demo")["tiers"]
    owned = {tier["name"]: tier["owned"] for tier in tiers}
    claim = cluster.get("pvc", "demo-offload")["status"]["capacity"]["storage"]

    assert 1024**3 < owned["cpu"] < 2 * 1024**3  # the limit less the process itself
    assert 0 < owned["disk"] <= parse_bytes(claim)


def test_blocks_are_offloaded_to_the_claim(cluster: Cluster, demo: str) -> None:
    code = "import pathlib; [print(f.name) for f in pathlib.Path('/offload').glob('*.store')]"

    assert cluster.python(demo, code)


def test_the_pod_may_read_itself(cluster: Cluster, demo: str) -> None:
    """Without its Role one line of the log says that it cannot; see `predictor.pod.own_pod`."""
    log = cluster.log(demo)

    assert "is ready after" in log
    assert "cannot be read" not in log


def placement(url: str, model: str) -> Object:
    """Returns the placement that a model's metadata tells."""
    answer = httpx.get(f"{url}/v2/models/{model}", timeout=30)
    assert answer.status_code == 200, answer.text
    found: Object = json.loads(answer.json()["properties"]["placement"])
    return found
