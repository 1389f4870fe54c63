"""Pods as the API server gives them, cut down to what matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def make_pod(*containers: dict[str, Any], **volumes: dict[str, Any]) -> dict[str, Any]:
    """Return a Pod; each volume is given by its name: ``scratch={"emptyDir": {}}``."""
    return {
        "kind": "Pod",
        "metadata": {"name": "bloom-0", "namespace": "models", "uid": "u"},
        "spec": {
            "containers": list(containers),
            "volumes": [{"name": name, **volume} for name, volume in volumes.items()],
        },
    }


def make_container(
    limits: Mapping[str, str] | None = None,
    *,
    name: str = "kserve-container",
    mounts: Mapping[str, str] | None = None,
    requests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a container; ``mounts`` maps paths in it to volumes."""
    return {
        "name": name,
        "resources": {"limits": dict(limits or {}), "requests": dict(requests or {})},
        "volumeMounts": [
            {"name": volume, "mountPath": path} for path, volume in (mounts or {}).items()
        ],
    }
