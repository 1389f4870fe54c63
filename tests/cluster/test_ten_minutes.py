"""What KServe says of a model that does not fit where nobody makes it look; asked last."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from tests.cluster.conftest import ISVC
from tests.cluster.kubectl import Cluster, Object

pytestmark = pytest.mark.cluster

SENTENCE = "BloomForCausalLM in bfloat16 does not fit: main memory"
PROMISED_SECONDS = 600
"""KServe's `progressDeadlineSeconds`; the README says ten minutes."""


def test_the_pod_says_why_it_ended_at_once(cluster: Cluster) -> None:
    selector = f"{ISVC}=unfit"
    sentence = cluster.until(lambda: cluster.why_it_ended(selector), "why unfit ended", 120)

    assert sentence.startswith(SENTENCE)


def test_after_ten_minutes_what_cannot_fit_says_so_in_the_services_status(cluster: Cluster) -> None:
    made = cluster.get("inferenceservice", "unfit")["metadata"]["creationTimestamp"]
    age = time.time() - datetime.fromisoformat(made).timestamp()

    def failure() -> Object:
        status = cluster.get("inferenceservice", "unfit")["status"]
        found: Object = status["modelStatus"]["lastFailureInfo"]
        return found

    left = max(PROMISED_SECONDS - age, 0) + 30
    try:
        found = cluster.until(failure, "the failure of a model that does not fit", left)
    except AssertionError:  # the container was running just then, which KServe does not look past
        found = cluster.until(
            lambda: cluster.look("unfit") and failure(), "KServe to be made to look", 120
        )
    assert found["reason"] == "ModelLoadFailed"
    assert found["exitCode"] == 78
    assert found["message"].startswith(SENTENCE)
