"""Every example of manifests/ and helm/, applied as far as this cluster allows.

The demo is served. The node advertises GPUs that it does not have. An example with a GPU is
scheduled, sees none, and must report that in one sentence. The cluster has no Knative.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from tests.cluster import objects
from tests.cluster.conftest import (
    GPUS,
    ISVC,
    await_service,
    containers,
    replies,
    storage_container_like_kserves,
)
from tests.cluster.kubectl import READY_SECONDS, Cluster, Object, run
from tests.deploy.cases import STORIES
from tests.deploy.helm import CHART, render

pytestmark = pytest.mark.cluster

WITH_GPUS = sorted(name for name, values in STORIES.items() if "accelerators" in values)
CLASS = "local-nvme"
FAKE_GPUS = "64"
"""More GPUs than a node has. A run that was killed may have left them."""


@pytest.fixture(scope="module")
def gpus(cluster: Cluster) -> Iterator[None]:
    """Make the nodes advertise GPUs."""
    nodes = [node["metadata"]["name"] for node in cluster.get("nodes")["items"]]
    for node in nodes:
        allocatable = cluster.get("node", node)["status"]["allocatable"]
        if allocatable.get(GPUS[0], "0") not in ("0", FAKE_GPUS):
            pytest.skip(f"{node} has real GPUs, which these tests do not cover")
    patch(cluster, nodes, [{"op": "add", "path": path(gpu), "value": FAKE_GPUS} for gpu in GPUS])
    yield
    patch(cluster, nodes, [{"op": "remove", "path": path(gpu)} for gpu in GPUS])


@pytest.fixture(scope="module")
def prerequisites(cluster: Cluster, hub: str) -> Iterator[None]:
    """Make the objects that the examples expect: a claim with models, a token, a StorageClass."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub-token"},
        "stringData": {"HF_TOKEN": "hf_secret"},
    }
    cluster.apply([objects.claim("models", "1Gi"), secret])
    code = "for name in qwen2.5-7b-instruct bloom-7b1; do cp -r /opt/demo-model /models/$name; done"
    base = objects.base(cluster.image)
    pod = objects.program("fill", cluster.image, "load.py", like=base, claim="models")
    pod["spec"]["containers"][0]["command"] = ["sh", "-c", code]
    cluster.apply([pod])
    done = ("--for=jsonpath={.status.phase}=Succeeded", f"--timeout={READY_SECONDS}s")
    cluster.kubectl("wait", "pod/fill", *done, seconds=READY_SECONDS)
    made = local_class(cluster)
    yield
    if made:
        cluster.kubectl("delete", "storageclass", CLASS)


def local_class(cluster: Cluster) -> bool:
    """Make the class of ``scratch-per-replica`` like the default one; return whether it was new."""
    classes = cluster.get("storageclasses")["items"]
    if any(one["metadata"]["name"] == CLASS for one in classes):
        return False
    default = "storageclass.kubernetes.io/is-default-class"
    (like,) = (c for c in classes if c["metadata"].get("annotations", {}).get(default) == "true")
    like["metadata"] = {"name": CLASS}
    cluster.apply([like])
    return True


def path(gpu: str) -> str:
    return f"/status/capacity/{gpu.replace('/', '~1')}"


def patch(cluster: Cluster, nodes: list[str], operations: list[Object]) -> None:
    for node in nodes:
        how = ("--subresource=status", "--type=json", f"--patch={json.dumps(operations)}")
        cluster.kubectl("patch", "node", node, *how)


def failure(cluster: Cluster, service: str) -> Object | None:
    """Make KServe reconcile; return its failure report of the predictor, if there is one."""
    cluster.reconcile(service)
    status = cluster.get("isvc", service)["status"]
    failure_info: Object = status["modelStatus"]["lastFailureInfo"]
    return (
        failure_info if failure_info["reason"] == "ModelLoadFailed" else None
    )  # else there is no runtime yet


def assert_reports_that_there_is_no_gpu(cluster: Cluster, service: str, *first: str) -> None:
    """Check the InferenceService's and the pod's status, and the exit code."""
    # The limit is long before KServe reconciles by itself.
    failure_info = cluster.until(
        lambda: failure(cluster, service), f"the failure of {service}", 300
    )
    sentence, selector = failure_info["message"].strip(), f"{ISVC}={service}"

    assert (failure_info["reason"], failure_info["exitCode"]) == ("ModelLoadFailed", 78)
    assert re.fullmatch(r"the Pod asks for .* and torch sees no devices of that kind; .*", sentence)
    assert sentence in cluster.until(lambda: cluster.why_it_ended(selector), "why it ended")
    pods = cluster.pods(selector)
    assert pods
    assert [containers(pod) for pod in pods] == [[*first, "kserve-container"]] * len(pods)


@pytest.fixture(scope="module")
def manifests(
    cluster: Cluster, gpus: None, prerequisites: None, storage_container: str, hub: str
) -> dict[str, list[Object]]:
    """Apply all examples with a GPU at the same time; return the objects of each."""
    of_hub = {"HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    made = {name: objects.example(name, cluster.image, **of_hub) for name in WITH_GPUS}
    for one in made.values():
        if is_downloaded(one):
            objects.service(one)["spec"]["predictor"]["storageContainerName"] = storage_container
        cluster.apply(one)
    return made


@pytest.mark.parametrize("story", WITH_GPUS)
def test_an_example_with_a_gpu_reports_that_it_sees_none(
    cluster: Cluster, manifests: dict[str, list[Object]], story: str
) -> None:
    first = ["storage-initializer"] if is_downloaded(manifests[story]) else []
    try:
        assert_reports_that_there_is_no_gpu(cluster, story, *first)
    finally:
        cluster.delete(manifests[story])


@pytest.fixture(scope="module")
def releases(cluster: Cluster, gpus: None, prerequisites: None, hub: str) -> None:
    """Install all of the chart's examples with a GPU at the same time.

    The predictor downloads the models instead of KServe: the chart names no storage container.
    """
    for story in WITH_GPUS:
        values = json.loads(json.dumps(STORIES[story]))
        uri = values["model"].get("uri", "")
        if uri.startswith("hf://"):
            values["model"] = {"id": uri.removeprefix("hf://")}
        values |= objects.chart_image(cluster.image)
        values["resources"]["requests"] = objects.SMALL
        values["resources"]["limits"]["cpu"] = 4  # else it is the request
        values["extraEnv"] = [
            {"name": "HF_ENDPOINT", "value": hub},
            {"name": "HF_HUB_DISABLE_XET", "value": "1"},
        ]
        cluster.helm("install", f"chart-{story}", str(CHART), values=values)


@pytest.mark.parametrize("story", WITH_GPUS)
def test_the_charts_example_with_a_gpu_reports_that_it_sees_none(
    cluster: Cluster, releases: None, story: str
) -> None:
    try:
        assert_reports_that_there_is_no_gpu(cluster, f"chart-{story}")
    finally:
        cluster.helm("uninstall", f"chart-{story}")


def is_downloaded(made: list[Object]) -> bool:
    """Return whether KServe downloads the model."""
    model: Object = objects.service(made)["spec"]["predictor"].get("model", {})
    return str(model.get("storageUri")).startswith("hf://")


def test_every_example_is_in_one_of_these_tests() -> None:
    assert set(STORIES) == {*WITH_GPUS, "demo", "knative"}


def test_a_model_that_kserve_downloads_is_served(
    cluster: Cluster, storage_container: str, demo_replies: list[str]
) -> None:
    """The storage-initializer fetches the demo, as ``hf://``, from a hub on the cluster."""
    with cluster.applied(downloaded("downloaded", storage_container)):
        pod = await_service(cluster, "downloaded")

        assert containers(cluster.get("pod", pod)) == ["storage-initializer", "kserve-container"]
        assert replies(cluster, pod, "downloaded") == demo_replies


def test_a_download_that_fails_reports_the_reason(cluster: Cluster, storage_container: str) -> None:
    """A gated model without a token ends the storage-initializer, not the predictor."""
    with cluster.applied(downloaded("gated", storage_container, "hf://meta-llama/model")):
        selector = f"{ISVC}=gated"
        sentence = cluster.until(lambda: cluster.why_it_ended(selector), "why it ended", 120)

        assert "401" in sentence


def test_without_the_patch_a_restricted_namespace_refuses_kserves_download(
    cluster: Cluster, hub: str
) -> None:
    bare = storage_container_like_kserves(cluster, f"{cluster.namespace}-bare", hub)
    made = downloaded("refused", bare["metadata"]["name"])

    def refusals() -> list[str]:
        events = cluster.get("events", "--field-selector=reason=FailedCreate")["items"]
        ours = [e for e in events if e["involvedObject"]["name"].startswith("refused-predictor-")]
        return [event["message"] for event in ours]

    with cluster.applied([bare]), cluster.applied(made):
        refusal = cluster.until(refusals, "a pod to be refused", 120)[0]

    assert 'violates PodSecurity "restricted' in refusal
    assert 'container "storage-initializer" must set' in refusal


def downloaded(name: str, storage_container: str, uri: str = "hf://demo/model") -> list[Object]:
    """Return the demo under another name, from a hub's repository instead of the image."""
    made = objects.demo(name)
    predictor = objects.service(made)["spec"]["predictor"]
    del predictor["model"]["args"]
    predictor["model"]["storageUri"] = uri
    predictor["storageContainerName"] = storage_container
    return made


def test_a_model_on_a_claim_is_served(
    cluster: Cluster, prerequisites: None, demo_replies: list[str]
) -> None:
    """KServe mounts the claim of ``pvc://``, and no init container is needed."""
    made = objects.demo("claimed")
    predictor = objects.service(made)["spec"]["predictor"]
    del predictor["model"]["args"]
    predictor["model"]["storageUri"] = "pvc://models/bloom-7b1"
    with cluster.applied(made):
        pod = await_service(cluster, "claimed")

        assert containers(cluster.get("pod", pod)) == ["kserve-container"]
        assert replies(cluster, pod, "claimed") == demo_replies


def test_the_api_server_accepts_the_knative_example(cluster: Cluster) -> None:
    made = objects.example("knative", cluster.image)

    assert "created (server dry run)" in cluster.apply(made, "--dry-run=server")


def test_the_api_server_accepts_the_cluster_runtime_and_the_jobs(
    cluster: Cluster,
) -> None:
    jobs = ("jobs/import-torchserve.yaml", "jobs/batch.yaml")
    files = ("cluster/cluster-serving-runtime.yaml", *jobs)
    for file in files:
        made = objects.loaded((objects.MANIFESTS / file).read_text())
        assert "created (server dry run)" in cluster.apply(made, "--dry-run=server")


def test_the_api_server_accepts_a_plans_inference_service(cluster: Cluster) -> None:
    stated = ("--gpus=2x80GiB", "--memory=128GiB", "--disk=400GiB", "--output=inferenceservice")
    plan = ("plan", str(objects.ROOT / "examples" / "bloom-176b.json"), *stated)
    made = objects.loaded(run([sys.executable, "-m", "predictor", *plan]))

    assert "created (server dry run)" in cluster.apply(made, "--dry-run=server")


def test_the_charts_knative_example_needs_knative(cluster: Cluster) -> None:
    if "serving.knative.dev/v1" in cluster.apis():
        pytest.skip("this cluster has Knative, so nothing is missing")
    with pytest.raises(AssertionError, match=r"This cluster has no Service \(serving.knative.dev"):
        cluster.helm("install", "knative", str(CHART), values=STORIES["knative"])
    made = [o for o in render(STORIES["knative"], release="knative") if o["kind"] != "Pod"]

    assert "created (server dry run)" in cluster.apply(made, "--dry-run=server")
