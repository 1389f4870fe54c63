"""What an API server in strict mode would say of an object."""

from __future__ import annotations

import kubernetes_validate

from tests import crds
from tests.deploy.helm import KUBERNETES, Object

UNKNOWN_HERE = ("keda.sh/", "monitoring.coreos.com/")
"""Whose definitions are not at hand."""


def faults(found: Object) -> list[str]:
    """Returns fields that are unknown, missing or of the wrong kind."""
    if found["apiVersion"].startswith("serving.kserve.io/"):
        return crds.faults(found)
    if found["apiVersion"].startswith(UNKNOWN_HERE):
        return []
    try:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message[:200]}"]
    return []
