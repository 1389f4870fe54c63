"""A pod while the kubelet or the API server is down. Last: the node is not ready afterwards."""

from __future__ import annotations

import os
import signal
import time

import httpx
import pytest

from tests.cluster.conftest import DEMO, GREEDY, Reached, replies
from tests.cluster.kubectl import Cluster
from tests.cluster.node import Node
from tests.server.test_clients import over_v1

pytestmark = pytest.mark.cluster

AWAY_SECONDS = 60.0


def at(cluster: Cluster, pod: str) -> Reached:
    """Return the demo's address on the node itself, which needs no API server."""
    return Reached(f"http://{cluster.get('pod', pod)['status']['podIP']}:8080", "", "demo")


def restarts(cluster: Cluster, pod: str) -> int:
    (status,) = cluster.get("pod", pod)["status"]["containerStatuses"]
    count: int = status["restartCount"]
    return count


def test_a_kubelet_that_is_restarted_is_not_noticed(
    cluster: Cluster, node: Node, demo: str, demo_replies: list[str]
) -> None:
    served, before = at(cluster, demo), restarts(cluster, demo)
    with node.away("kubelet"):
        for _ in range(10):
            assert over_v1(served, **GREEDY) == demo_replies
            time.sleep(1)
    after = cluster.until(lambda: replies(cluster, demo), "the kubelet to let the tests in", 60)

    assert after == demo_replies
    assert cluster.ready_pod(DEMO) == demo
    assert restarts(cluster, demo) == before


def test_without_the_api_server_the_pod_serves_on_and_its_container_starts_again(
    cluster: Cluster, node: Node, demo: str, demo_replies: list[str]
) -> None:
    served, before = at(cluster, demo), restarts(cluster, demo)
    process = node.predictor_of(cluster.get("pod", demo)["metadata"]["uid"])
    with node.away("kube-apiserver"):
        end = time.monotonic() + AWAY_SECONDS
        assert over_v1(served, **GREEDY) == demo_replies
        os.kill(process, signal.SIGTERM)
        await_status(served, None)
        await_status(served, 200)
        started = end - time.monotonic()
        assert over_v1(served, **GREEDY) == demo_replies
        time.sleep(max(end - time.monotonic(), 0))
    assert started > 0  # before the API server was there again
    cluster.until(lambda: restarts(cluster, demo) == before + 1, "the node to report its restart")
    assert cluster.ready_pod(DEMO) == demo
    assert "cannot be read: the API server gives no answer" in cluster.log(demo)
    assert replies(cluster, demo) == demo_replies


def await_status(served: Reached, status: int | None) -> None:
    """Wait until readiness is answered with a status; None waits for a closed port."""
    deadline = time.monotonic() + 120
    while status_of(served) != status:
        assert time.monotonic() < deadline, f"readiness is never answered with {status}"
        time.sleep(0.2)


def status_of(served: Reached) -> int | None:
    try:
        return httpx.get(f"{served.url}/v2/health/ready", timeout=5).status_code
    except httpx.HTTPError:
        return None
