"""What only a real cluster can show: KServe, real claims, pods that come and go.

    CLUSTER_TEST_KUBECONFIG=~/.kube/config pytest tests/cluster

Wants a cluster with KServe in Standard mode and a default StorageClass, `kubectl`, `helm`, and the
predictor's image where its nodes find it (CLUSTER_TEST_IMAGE; accelerate-predictor:0.1.0 if it is
not set). Everything happens in a namespace of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import pytest

from predictor.quantity import parse_bytes
from tests.cluster import objects
from tests.cluster.kubectl import CONTAINER, READY_SECONDS, Cluster, Object
from tests.server.test_clients import PROMPTS, over_grpc, over_v1, over_v2

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

DEMO = "serving.kserve.io/inferenceservice=demo"
GREEDY = {"max_new_tokens": 8, "temperature": 0}


@dataclass(frozen=True)
class Reached:
    """A predictor through `kubectl port-forward`."""

    url: str
    grpc: str
    name: str


@pytest.fixture(scope="module")
def demo(cluster: Cluster) -> str:
    """The demo, up and offloaded to a store on its claim; gives the name of its first pod."""
    cluster.apply(objects.base(cluster.image))
    cluster.apply(objects.demo("demo", offload_store="always"))
    return await_ready(cluster, "demo")


@pytest.fixture
def reached(cluster: Cluster, demo: str) -> Iterator[Reached]:
    pod = cluster.ready_pod(DEMO)
    with cluster.forward(pod, 8080) as rest, cluster.forward(pod, 8081) as grpc:
        yield Reached(f"http://{rest}", grpc, "demo")


def await_ready(cluster: Cluster, service: str) -> str:
    """Returns the pod of an InferenceService that is ready."""
    pod = cluster.ready_pod(f"serving.kserve.io/inferenceservice={service}")
    wait = (f"inferenceservice/{service}", "--for=condition=Ready", f"--timeout={READY_SECONDS}s")
    cluster.kubectl("wait", *wait, seconds=READY_SECONDS + 60)
    return pod


def test_every_protocol_gives_the_same_replies(reached: Reached) -> None:
    replies = over_v1(reached, **GREEDY)

    assert all(replies)
    assert over_v2(reached, **GREEDY) == replies
    assert over_grpc(reached, **GREEDY) == replies
    with openai.OpenAI(base_url=f"{reached.url}/openai/v1", api_key="none") as client:
        asked = {"model": "demo", "max_tokens": 8, "temperature": 0}
        choices = client.completions.create(prompt=PROMPTS, **asked).choices
    assert [choice.text for choice in choices] == replies


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
    pod = cluster.ready_pod(DEMO)

    assert cluster.kubectl("exec", pod, f"--container={CONTAINER}", "--", "python3", "-c", code)


def test_the_pod_may_read_itself(cluster: Cluster, demo: str) -> None:
    """Without its Role one line of the log says that it cannot; see `predictor.pod.own_pod`."""
    log = cluster.kubectl("logs", cluster.ready_pod(DEMO), f"--container={CONTAINER}")

    assert "is ready after" in log
    assert "cannot be read" not in log


def test_a_pod_deleted_under_load_loses_no_accepted_request(cluster: Cluster, demo: str) -> None:
    first = cluster.ready_pod(DEMO)
    base = objects.base(cluster.image)
    cluster.apply([objects.load(cluster.image, "demo-predictor", "demo", 60, like=base)])
    cluster.until(lambda: "answered" in cluster.kubectl("logs", "load"), "the first answer")
    cluster.kubectl("delete", "pod", first, "--wait=false")

    phase = cluster.until(lambda: ended(cluster.get("pod", "load")), "the end of the load")
    log = cluster.kubectl("logs", "load")
    assert phase == "Succeeded", log
    found = json.loads(log.splitlines()[-1])
    assert (found["lost"], found["unanswered"]) == ([], 0)
    assert found["answered"] > 0
    assert found["refused"] > 0  # else there was no gap between the two pods to get over


def test_the_next_pod_finds_the_store_of_the_first(cluster: Cluster, demo: str) -> None:
    before = cluster.ready_pod(DEMO)
    cluster.kubectl("delete", "pod", before, "--wait=false")
    pod = cluster.ready_pod(DEMO, other_than=before)

    with cluster.forward(pod, 8080) as rest:
        told = httpx.get(f"http://{rest}/metrics", timeout=30).text
    assert 'predictor_offload_store_hits_total{model_name="demo"} 1.0' in told


def test_what_cannot_fit_says_so_in_the_services_status(cluster: Cluster, demo: str) -> None:
    cluster.apply(objects.demo("unfit", max_memory='{"cpu":"1MiB"}'))

    def failure() -> Object:
        status = cluster.get("inferenceservice", "unfit")["status"]
        found: Object = status["modelStatus"]["lastFailureInfo"]
        return found

    found = cluster.until(failure, "the failure of a model that does not fit")
    assert found["reason"] == "ModelLoadFailed"
    assert found["exitCode"] == 78
    assert found["message"].startswith("BloomForCausalLM in bfloat16 does not fit: main memory")
    cluster.kubectl("delete", "inferenceservice/unfit", "pvc/unfit-offload", "--wait=false")


@pytest.mark.parametrize("kserve", [True, False], ids=["InferenceService", "Deployment"])
def test_the_charts_claim_outlives_upgrade_rollback_and_uninstall(
    cluster: Cluster, kserve: bool
) -> None:
    release = "kept-service" if kserve else "kept-plain"
    chart, claim = str(objects.ROOT / "helm"), f"{release}-offload"
    short = objects.chart_values(cluster.image, kserve=kserve, max_model_len=128)
    long = objects.chart_values(cluster.image, kserve=kserve, max_model_len=256)

    cluster.helm("install", release, chart, values=long)
    await_length(cluster, release, kserve, 256)
    uid = cluster.get("pvc", claim)["metadata"]["uid"]
    cluster.helm("upgrade", release, chart, values=short)
    await_length(cluster, release, kserve, 128)
    cluster.helm("rollback", release, "1")
    await_length(cluster, release, kserve, 256)
    cluster.helm("uninstall", release, "--wait")
    cluster.until(lambda: not cluster.pods(selector(release, kserve)), "the end of its pods")
    assert cluster.get("pvc", claim)["metadata"]["uid"] == uid

    cluster.helm("install", release, chart, values=long)
    await_length(cluster, release, kserve, 256)
    cluster.helm("test", release)
    assert cluster.get("pvc", claim)["metadata"]["uid"] == uid
    cluster.helm("uninstall", release, "--wait")
    cluster.kubectl("delete", "pvc", claim, "--wait=false")


def await_length(cluster: Cluster, release: str, kserve: bool, max_model_len: int) -> None:
    """Waits until the release's one pod serves with this `max_model_len`."""

    def look() -> bool:
        pod = cluster.ready_pod(selector(release, kserve))
        with cluster.forward(pod, 8080) as rest:
            found = placement(f"http://{rest}", release)
        return bool(found["max_model_len"] == max_model_len)

    cluster.until(look, f"a pod of {release} with max_model_len {max_model_len}")


def selector(release: str, kserve: bool) -> str:
    if kserve:
        return f"serving.kserve.io/inferenceservice={release}"
    return f"app.kubernetes.io/instance={release},app.kubernetes.io/component=predictor"


def placement(url: str, model: str) -> Object:
    """Returns the placement that a model's metadata tells."""
    answer = httpx.get(f"{url}/v2/models/{model}", timeout=30)
    assert answer.status_code == 200, answer.text
    found: Object = json.loads(answer.json()["properties"]["placement"])
    return found


def ended(pod: Object) -> str | None:
    phase: str = pod["status"]["phase"]
    return phase if phase in ("Succeeded", "Failed") else None
