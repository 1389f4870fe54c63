"""Pods that are replaced: no accepted request is lost, and later replies are right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from tests.cluster import objects
from tests.cluster.conftest import DEMO, GREEDY, ISVC, replies
from tests.cluster.kubectl import Cluster, ForbiddenState, Object
from tests.server.test_clients import PROMPTS

pytestmark = pytest.mark.cluster

PAIR = f"{ISVC}=pair"
PACKING = f"{ISVC}=packing"


@contextmanager
def under_load(cluster: Cluster, service: str) -> Iterator[dict[str, Any]]:
    """Send requests to a Service without pause; give a dict that has the outcomes at the end."""
    name, outcome = f"load-{service}", dict[str, Any]()
    base = objects.base(cluster.image)
    pod = objects.load(name, cluster.image, f"{service}-predictor", service, like=base)
    with cluster.applied([pod]):
        cluster.until(lambda: "answered" in cluster.kubectl("logs", name), "the first reply")
        yield outcome
        cluster.python(name, "import os, signal; os.kill(1, signal.SIGTERM)", container="program")
        phase = cluster.until(lambda: ended(cluster.get("pod", name)), "the end of the load")
        log = cluster.kubectl("logs", name)
        assert phase == "Succeeded", log
        outcome.update(json.loads(log.splitlines()[-1]))


def ended(pod: Object) -> str | None:
    phase: str = pod["status"]["phase"]
    return phase if phase in ("Succeeded", "Failed") else None


def store_hits(cluster: Cluster, pod: str, model: str) -> bool:
    """Return whether a pod used an existing store on its claim."""
    with cluster.forward(pod, 8080) as rest:
        metrics = httpx.get(f"http://{rest}/metrics", timeout=30).text
    return f'predictor_offload_store_hits_total{{model_name="{model}"}} 1.0' in metrics


def test_a_pod_deleted_under_load_loses_no_accepted_request(
    cluster: Cluster, demo: str, demo_replies: list[str]
) -> None:
    with under_load(cluster, "demo") as outcome:
        cluster.kubectl("delete", "pod", demo, "--wait=false")
        pod = cluster.ready_pod(DEMO, other_than=demo)

    assert (outcome["lost"], outcome["unanswered"]) == ([], 0)
    assert outcome["answered"] > 0
    assert outcome["refused"] > 0  # else there was no gap between the two pods to get over
    assert store_hits(cluster, pod, "demo")
    assert replies(cluster, pod) == demo_replies


def test_a_pod_deleted_while_it_loads_is_followed_by_one_that_serves(
    cluster: Cluster, demo: str, demo_replies: list[str]
) -> None:
    before, seen = demo, False
    for _ in range(3):  # it loads for a second or two, which polling may miss
        cluster.kubectl("delete", "pod", before, "--wait=false")
        before, seen = cluster.until(partial(started, cluster, before), "a pod that starts")
        if seen:
            break
    assert seen, "no pod was seen while it loads"
    cluster.kubectl("delete", "pod", before, "--wait=false")
    second = cluster.ready_pod(DEMO, other_than=before)

    assert replies(cluster, second) == demo_replies


def started(cluster: Cluster, before: str) -> tuple[str, bool] | None:
    """Return the pod after `before`, once its ports are open, and whether it still loads."""
    (pod,) = cluster.pods(DEMO)
    name: str = pod["metadata"]["name"]
    log = cluster.log(name) if name != before else ""
    return (name, "is ready after" not in log) if "REST on" in log else None


def test_an_update_by_recreate_never_has_two_pods_on_the_claim(
    cluster: Cluster, demo: str, demo_replies: list[str]
) -> None:
    cluster.apply(objects.demo("demo", offload_store="always", max_batch_size="7"))

    def updated() -> str | None:
        pods = cluster.get("pods", f"--selector={DEMO}")["items"]
        running = [pod for pod in pods if is_running(pod)]
        if len(running) > 1:
            raise ForbiddenState([pod["metadata"]["name"] for pod in running])
        return next((p["metadata"]["name"] for p in running if p["metadata"]["name"] != demo), None)

    new = cluster.until(updated, "the updated pod")
    assert cluster.ready_pod(DEMO) == new
    assert store_hits(cluster, new, "demo")
    assert replies(cluster, new) == demo_replies


def is_running(pod: Object) -> bool:
    statuses = pod["status"].get("containerStatuses", ())
    return any("running" in status["state"] for status in statuses)


def test_two_replicas_on_one_claim_lose_nothing_by_a_delete_or_a_rolling_update(
    cluster: Cluster, demo_replies: list[str]
) -> None:
    pair = objects.replicas(objects.demo("pair", offload_store="always"), 2)
    updated = objects.demo("pair", offload_store="always", max_batch_size="7")
    with cluster.applied(pair):
        first = cluster.ready_pods(PAIR, 2)
        with under_load(cluster, "pair") as outcome:
            cluster.kubectl("delete", "pod", first[0], "--wait=false")
            second = cluster.ready_pods(PAIR, 2, other_than=first[:1])
            cluster.apply(objects.replicas(updated, 2))
            third = cluster.ready_pods(PAIR, 2, other_than=second)

        assert (outcome["lost"], outcome["unanswered"]) == ([], 0)
        assert outcome["answered"] > 0
        for pod in third:
            assert store_hits(cluster, pod, "pair")
            assert replies(cluster, pod, "pair") == demo_replies


def test_a_pod_deleted_while_it_packs_the_store_is_followed_by_one_with_the_right_reply(
    cluster: Cluster,
) -> None:
    claim = objects.claim("big", "4Gi")
    with cluster.applied([claim]):
        expected = make_big_model(cluster)
        with cluster.applied(packing_service()):
            first = cluster.until(lambda: packs(cluster), "a pod that packs its store", 120)
            cluster.kubectl("delete", "pod", first, "--grace-period=0", "--force")
            second = cluster.ready_pod(PACKING, other_than=first)

            assert not store_hits(cluster, second, "packing")  # else the first had finished
            with cluster.forward(second, 8080) as rest:
                body = {"instances": PROMPTS[:1], "parameters": GREEDY}
                url = f"http://{rest}/v1/models/packing:predict"
                response = httpx.post(url, json=body, timeout=120)
            assert response.json()["predictions"][0]["text"] == expected
            files = cluster.python(second, "import os; print(*os.listdir('/offload'))")
            assert ".store" in files
            assert ".part" not in files


WATCH = """
import os, time
end = time.monotonic() + 60
while time.monotonic() < end:
    names = os.listdir("/offload")
    if any(".part" in name for name in names):
        print("packs")
        break
    if any(name.endswith(".store") for name in names):
        break
    time.sleep(0.01)
"""


def packs(cluster: Cluster) -> str | None:
    """Return the one pod's name as soon as it writes its store."""
    (pod,) = cluster.pods(PACKING)
    name: str = pod["metadata"]["name"]
    return name if cluster.python(name, WATCH) == "packs\n" else None


def make_big_model(cluster: Cluster) -> str:
    """Make a model on the claim ``big``; return transformers' reply to the first prompt."""
    tokens = str(GREEDY["max_new_tokens"])
    arguments = ("/opt/demo-model", "/models/big", PROMPTS[0], tokens)
    like = objects.base(cluster.image)
    pod = objects.program(
        "maker", cluster.image, "big_model.py", *arguments, like=like, claim="big", memory="4Gi"
    )
    pod["spec"]["containers"][0]["resources"]["requests"]["memory"] = "1Gi"
    with cluster.applied([pod]):
        phase = cluster.until(lambda: ended(cluster.get("pod", "maker")), "the big model")
        log = cluster.kubectl("logs", "maker")
        assert phase == "Succeeded", log
        text: str = json.loads(log.splitlines()[-1])["text"]
        return text


def packing_service() -> list[Object]:
    """Return a service of the big model in float32, most of which is offloaded to its store."""
    made = objects.demo(
        "packing",
        offload_store="always",
        dtype="float32",
        max_memory='{"cpu":"700MiB"}',
    )
    predictor = objects.service(made)["spec"]["predictor"]
    del predictor["model"]["args"]
    predictor["model"]["storageUri"] = "pvc://big/big"
    (volume,) = (obj for obj in made if obj["kind"] == "PersistentVolumeClaim")
    volume["spec"]["resources"]["requests"]["storage"] = "4Gi"
    # Half a processor packs it in some seconds; a pod gets two to end, even if it is forced.
    predictor["model"]["resources"]["limits"] = {"cpu": "500m", "memory": "4Gi"}
    return made
