"""The cluster that CLUSTER_TEST_KUBECONFIG leads to, and a namespace in it for one run."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.kubectl import Cluster
from tests.skips import skip_or_fail

KUBECONFIG = "CLUSTER_TEST_KUBECONFIG"
IMAGE = "accelerate-predictor:0.1.0"
"""As `manifests/` names it; another in CLUSTER_TEST_IMAGE."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Gives an empty namespace that lets in restricted pods only, and takes it away."""
    kubeconfig = os.environ.get(KUBECONFIG)
    if not kubeconfig:
        skip_or_fail(f"{KUBECONFIG} names no cluster", "REQUIRE_CLUSTER")
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed", "REQUIRE_CLUSTER")
    image = os.environ.get("CLUSTER_TEST_IMAGE", IMAGE)
    found = Cluster(kubeconfig, f"predictor-{uuid.uuid4().hex[:8]}", image)
    found.kubectl("create", "namespace", found.namespace)
    label = "pod-security.kubernetes.io/enforce=restricted"
    found.kubectl("label", "namespace", found.namespace, label)
    yield found
    found.kubectl("delete", "namespace", found.namespace, "--wait=false")
