"""What fails around a predictor: the kubelet, the API server, a claim that is full."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.cluster import objects
from tests.cluster.conftest import DEMO, GREEDY, ISVC, Reached, await_service, replies
from tests.cluster.kubectl import Cluster, Object
from tests.cluster.node import Node, small_volume
from tests.server.process import serve
from tests.server.test_clients import over_v1

pytestmark = pytest.mark.cluster

DEMO_MODEL = objects.ROOT / "examples" / "demo-model"
AWAY_SECONDS = 60.0
SMALL_BYTES = "1m"
"""Less than the demo's store; a claim is asked for in larger steps than that."""


def at(cluster: Cluster, pod: str) -> Reached:
    """Where the demo answers on the node itself, without the API server."""
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
    cluster.until(lambda: cluster.kubectl("get", "--raw=/readyz") == "ok", "the API server")

    assert started > 0  # before the API server was there again
    assert cluster.ready_pod(DEMO) == demo
    assert restarts(cluster, demo) == before + 1
    assert "cannot be read: the API server gives no answer" in cluster.log(demo)
    assert replies(cluster, demo) == demo_replies


def await_status(served: Reached, status: int | None) -> None:
    """Waits until readiness is answered with a status, or None: until nobody listens."""
    deadline = time.monotonic() + 120
    while status_of(served) != status:
        assert time.monotonic() < deadline, f"readiness is never answered with {status}"
        time.sleep(0.2)


def status_of(served: Reached) -> int | None:
    try:
        return httpx.get(f"{served.url}/v2/health/ready", timeout=5).status_code
    except httpx.HTTPError:
        return None


@pytest.fixture
def full(cluster: Cluster, node: Node, tmp_path: Path) -> Iterator[Callable[..., list[Object]]]:
    """Gives a function that applies the demo, under a name, with a claim that holds a mebibyte."""
    with ExitStack() as stack:

        def apply(name: str, *, hub: str | None = None, **settings: str) -> list[Object]:
            # Every user of the node may go where the volume is.
            for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
                folder.chmod(folder.stat().st_mode | 0o011)
            folder = stack.enter_context(small_volume(tmp_path / name, SMALL_BYTES))
            made = on_volume(objects.demo(name, **settings), cluster.namespace, name, folder)
            if hub is not None:
                from_hub(made, hub)
            cluster.apply(made)
            stack.callback(cluster.delete, made)
            return made

        yield apply


def on_volume(made: list[Object], namespace: str, name: str, folder: Path) -> list[Object]:
    """Returns a service's objects with a volume for its claim that is a folder of the node."""
    (claim,) = (found for found in made if found["kind"] == "PersistentVolumeClaim")
    volume = objects.volume(f"{namespace}-{name}", "1Gi", folder, namespace, f"{name}-offload")
    claim["spec"] |= {"storageClassName": "", "volumeName": volume["metadata"]["name"]}
    return [volume, *made]


def from_hub(made: list[Object], hub: str) -> None:
    """Makes the predictor download its model to its claim."""
    model = objects.service(made)["spec"]["predictor"]["model"]
    del model["args"]
    environ = {
        "PREDICTOR_MODEL_ID": "demo/model",
        "HF_HOME": "/offload/huggingface",
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
    }
    model["env"] += [{"name": name, "value": value} for name, value in environ.items()]


def test_a_claim_that_is_full_is_said_and_the_model_is_read_where_it_lies(
    cluster: Cluster, full: Callable[..., list[Object]]
) -> None:
    full("short", dtype="float32", max_memory='{"cpu":"12MiB"}')
    pod = await_service(cluster, "short")
    with serve(DEMO_MODEL, "--dtype=float32", "--max_model_len=256", name="demo") as server:
        expected = over_v1(server.await_ready(), **GREEDY)

    assert "lacks space: the store takes" in cluster.log(pod)
    assert replies(cluster, pod, "short") == expected


def test_a_claim_that_is_full_ends_a_start_that_has_to_have_a_store(
    cluster: Cluster, full: Callable[..., list[Object]]
) -> None:
    full("shut", dtype="float32", max_memory='{"cpu":"12MiB"}', offload_store="always")
    sentence = cluster.until(lambda: cluster.why_it_ended(f"{ISVC}=shut"), "why it ended", 120)

    assert "more space on the offload volume" in sentence


def test_a_claim_that_is_full_ends_a_download_with_a_sentence(
    cluster: Cluster, full: Callable[..., list[Object]], hub: str
) -> None:
    full("stuck", hub=hub)
    sentence = cluster.until(lambda: cluster.why_it_ended(f"{ISVC}=stuck"), "why it ended", 120)

    assert "No space left on device" in sentence
    assert sentence.strip().count("\n") == 0
