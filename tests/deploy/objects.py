"""The faults that an API server in strict mode would report of an object."""

from __future__ import annotations

import kubernetes_validate

from tests import crds
from tests.deploy.helm import KUBERNETES, Object

UNKNOWN_HERE = ("keda.sh/", "monitoring.coreos.com/")
"""APIs whose definitions are not available."""


def faults(obj: Object) -> list[str]:
    """Return the fields that are unknown, missing or of the wrong kind.

    Nothing is known of the fields of `UNKNOWN_HERE`.
    """
    if obj["apiVersion"].startswith("serving.kserve.io/"):
        return crds.faults(obj)
    if obj["apiVersion"].startswith(UNKNOWN_HERE):
        return []
    try:
        kubernetes_validate.validate(obj, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message[:200]}"]
    return []
