"""The chart on a cluster: install, upgrade, rollback, uninstall, its test and its notes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.cluster import objects
from tests.cluster.conftest import ISVC, containers
from tests.cluster.kubectl import CONTAINER, Cluster, Object, run
from tests.cluster.test_serving import placement
from tests.deploy.cases import CASES
from tests.deploy.helm import render

pytestmark = pytest.mark.cluster

CHART = str(objects.ROOT / "helm")
both_modes = pytest.mark.parametrize(
    "kserve", [True, False], ids=["InferenceService", "Deployment"]
)


@pytest.fixture(scope="module")
def monitoring(cluster: Cluster) -> Iterator[str]:
    """Give the namespace that the cases want their dashboard in."""
    name = "monitoring"
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    with cluster.applied([made]):
        yield name


@both_modes
def test_the_charts_claim_outlives_upgrade_rollback_and_uninstall(
    cluster: Cluster, kserve: bool, request: pytest.FixtureRequest
) -> None:
    release = "kept-service" if kserve else "kept-plain"
    claim = f"{release}-offload"
    request.addfinalizer(lambda: remove_release(cluster, release, claim))
    short = objects.chart_values(cluster.image, kserve=kserve, max_model_len=128)
    long = objects.chart_values(cluster.image, kserve=kserve, max_model_len=256)

    cluster.helm("install", release, CHART, values=long)
    await_length(cluster, release, kserve, 256)
    uid = cluster.get("pvc", claim)["metadata"]["uid"]
    cluster.helm("upgrade", release, CHART, values=short)
    await_length(cluster, release, kserve, 128)
    cluster.helm("rollback", release, "1")
    await_length(cluster, release, kserve, 256)
    cluster.helm("uninstall", release, "--wait")
    cluster.until(lambda: not cluster.pods(selector(release, kserve)), "the end of its pods")
    assert cluster.get("pvc", claim)["metadata"]["uid"] == uid

    cluster.helm("install", release, CHART, values=long)
    pod = await_length(cluster, release, kserve, 256)
    assert containers(cluster.get("pod", pod)) == ["kserve-container"]
    tested = cluster.helm("test", release, "--logs")
    assert re.search(r"^V1: .*\nV2: ", tested, re.MULTILINE), tested
    cluster.helm("test", release)  # the pod of the first is not in the way of the second
    assert_the_notes_are_true(cluster, release)
    assert cluster.get("pvc", claim)["metadata"]["uid"] == uid


def remove_release(cluster: Cluster, release: str, claim: str) -> None:
    """Uninstall a release and delete its remains: its claim and its test's pod."""
    cluster.helm("uninstall", release, "--wait", "--ignore-not-found")
    remains = ("--wait=false", "--ignore-not-found", f"pvc/{claim}", f"pod/{release}-ask")
    cluster.kubectl("delete", *remains)


def assert_the_notes_are_true(cluster: Cluster, release: str) -> None:
    """Check that all commands in the notes run, except port-forward and the request to it."""
    notes = cluster.helm("get", "notes", release)
    commands = [line.strip() for line in notes.splitlines() if line.startswith("  kubectl ")]
    shown = [
        run([*shlex.split(command.replace("$(date)", "now")), f"--kubeconfig={cluster.kubeconfig}"])
        for command in commands
        if " port-forward " not in command
    ]

    assert len(shown) == len(commands) - 1
    assert any("is ready after" in text for text in shown)


def await_length(cluster: Cluster, release: str, kserve: bool, max_model_len: int) -> str:
    """Return the release's one pod, once it serves with this `max_model_len`."""

    def updated_pod() -> str | None:
        pod = cluster.ready_pod(selector(release, kserve))
        with cluster.forward(pod, 8080) as rest:
            served = placement(f"http://{rest}", release)
        return pod if served["max_model_len"] == max_model_len else None

    return cluster.until(updated_pod, f"a pod of {release} with max_model_len {max_model_len}")


def selector(release: str, kserve: bool) -> str:
    if kserve:
        return f"{ISVC}={release}"
    return f"app.kubernetes.io/instance={release},app.kubernetes.io/component=predictor"


@pytest.mark.parametrize("case", CASES)
def test_the_api_server_accepts_the_charts_objects(
    cluster: Cluster, monitoring: str, case: str
) -> None:
    """This includes KServe's webhooks. Objects of APIs that this cluster lacks are left out."""
    apis = cluster.apis()
    made = [obj for obj in render(CASES[case]) if obj["apiVersion"] in apis]
    named = {obj["metadata"]["namespace"] for obj in made if "namespace" in obj["metadata"]}

    assert named <= {monitoring}
    assert len(cluster.apply(made, "--dry-run=server").splitlines()) == len(made)


@both_modes
def test_an_autoscaler_needs_keda(cluster: Cluster, kserve: bool) -> None:
    if "keda.sh/v1alpha1" in cluster.apis():
        pytest.skip("this cluster has KEDA, so nothing is missing")
    values = objects.chart_values(cluster.image, kserve=kserve, max_model_len=128)
    values["autoscaling"] = {"enabled": True, "maxReplicas": 1}

    with pytest.raises(AssertionError, match=r"This cluster has no ScaledObject \(keda\.sh"):
        cluster.helm("install", "scaled", CHART, values=values)
    assert not cluster.get("isvc", "--selector=app.kubernetes.io/instance=scaled")["items"]


def test_the_network_policy_is_for_the_predictors_pods(cluster: Cluster, demo: str) -> None:
    """Only a network that enforces the policy can show its effect; see the next test."""
    with cluster.applied(policy(cluster, {})):
        labels = cluster.get("networkpolicy", "demo")["spec"]["podSelector"]["matchLabels"]
        chosen = cluster.pods(",".join(f"{key}={value}" for key, value in labels.items()))

    assert [pod["metadata"]["name"] for pod in chosen] == [demo]


def test_the_network_policy_blocks_other_pods(cluster: Cluster, demo: str, hub: str) -> None:
    closed = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "hub"}}, "policyTypes": ["Ingress"]},
    }
    with cluster.applied([closed]):
        if not is_blocked(cluster, demo, CONTAINER, "hub"):
            pytest.skip("this cluster's network enforces no NetworkPolicy: a closed pod is reached")
    assert is_reached(cluster, "hub", "program", "demo-predictor")
    nobody = {"podSelector": {"matchLabels": {"app": "nobody"}}}
    with cluster.applied(policy(cluster, {"from": [nobody]})):
        assert is_blocked(cluster, "hub", "program", "demo-predictor")


def policy(cluster: Cluster, rules: Object) -> list[Object]:
    """Return the chart's NetworkPolicy for the demo."""
    values = objects.chart_values(cluster.image, kserve=True, max_model_len=128)
    values |= {"fullnameOverride": "demo", "networkPolicy": {"enabled": True, **rules}}
    apis = [f"--api-versions=serving.kserve.io/{version}" for version in ("v1beta1", "v1alpha1")]
    shown = "--show-only=templates/networkpolicy.yaml"
    return objects.loaded(cluster.helm("template", "policed", CHART, shown, *apis, values=values))


def is_blocked(cluster: Cluster, pod: str, container: str, service: str) -> bool:
    """Return whether a Service cannot be reached from a pod, at the latest after a while."""
    try:
        cluster.until(lambda: not is_reached(cluster, pod, container, service), "a closed port", 15)
    except AssertionError:
        return False
    return True


def is_reached(cluster: Cluster, pod: str, container: str, service: str) -> bool:
    return cluster.python(pod, CONNECT.format(service), container=container) == "reached\n"


CONNECT = """
import socket
try:
    socket.create_connection(({!r}, 80), 3)
    print("reached")
except OSError:
    print("not reached")
"""
