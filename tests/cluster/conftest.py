"""The cluster that CLUSTER_TEST_KUBECONFIG leads to, and a namespace in it for one run."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.cluster.kubectl import Cluster

KUBECONFIG = "CLUSTER_TEST_KUBECONFIG"
IMAGE = "accelerate-predictor:0.1.0"
"""As `manifests/` names it; another in CLUSTER_TEST_IMAGE."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Gives an empty namespace that lets in restricted pods only, and takes it away."""
    kubeconfig = os.environ.get(KUBECONFIG)
    if not kubeconfig:
        _skip_or_fail(f"{KUBECONFIG} names no cluster")
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            _skip_or_fail(f"{program} is not installed")
    image = os.environ.get("CLUSTER_TEST_IMAGE", IMAGE)
    found = Cluster(kubeconfig, f"predictor-{uuid.uuid4().hex[:8]}", image)
    found.kubectl("create", "namespace", found.namespace)
    label = "pod-security.kubernetes.io/enforce=restricted"
    found.kubectl("label", "namespace", found.namespace, label)
    yield found
    found.kubectl("delete", "namespace", found.namespace, "--wait=false")


def _skip_or_fail(reason: str) -> NoReturn:
    """Skips the tests that need a cluster, or fails them where one was promised."""
    if os.environ.get("REQUIRE_CLUSTER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
