"""A Deployment of the chart that is scaled to zero and back, as an autoscaler does it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster import objects
from tests.cluster.conftest import replies
from tests.cluster.kubectl import Cluster
from tests.deploy.helm import CHART

pytestmark = pytest.mark.cluster

RELEASE = "scaled-plain"
PODS = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=predictor"


@pytest.fixture
def deployment(cluster: Cluster) -> Iterator[str]:
    """Install the demo with a store on a claim; give the name of its Deployment."""
    values = objects.chart_values(cluster.image, kserve=False, max_model_len=128)
    cluster.helm("install", RELEASE, str(CHART), values=values)
    try:
        (one,) = cluster.get("deployments", f"--selector=app.kubernetes.io/instance={RELEASE}")[
            "items"
        ]
        yield one["metadata"]["name"]
    finally:
        cluster.helm("uninstall", RELEASE, "--wait", "--ignore-not-found")
        cluster.kubectl("delete", "pvc", f"{RELEASE}-offload", "--wait=false", "--ignore-not-found")


def test_a_pod_from_zero_replies_as_the_one_before(
    cluster: Cluster, deployment: str, record_property: pytest.RecordProperty
) -> None:
    """The seconds are a figure, printed with ``--junit-xml`` or ``-s``; they have no bound here."""
    before = replies(cluster, cluster.ready_pod(PODS), RELEASE)
    cluster.kubectl("scale", f"deployment/{deployment}", "--replicas=0")
    cluster.until(lambda: not cluster.pods(PODS), "the end of its pods")

    began = time.monotonic()
    cluster.kubectl("scale", f"deployment/{deployment}", "--replicas=1")
    pod = cluster.ready_pod(PODS)
    ready = time.monotonic() - began
    after = replies(cluster, pod, RELEASE)
    seconds = {"ready": round(ready, 1), "replied": round(time.monotonic() - began, 1)}

    record_property("seconds from zero", seconds)
    print(f"Seconds from zero: {seconds}")
    assert after == before
