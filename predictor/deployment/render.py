"""What a planned model needs, as a cluster is asked for it: Helm values, or an InferenceService.

Knows the values of the chart in ``helm/``, the runtime of ``manifests/`` and the fields of KServe's
v1beta1, and writes YAML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from predictor.deployment.sizing import Needs
from predictor.placement.plan import Placement
from predictor.quantity import as_quantity

WHERE_THE_MODEL_LIES = "pvc://CLAIM/PATH"
"""Stands where nothing says it; Kubernetes takes no claim of such a name."""

_RUNTIME = "accelerate-predictor"
_MOUNT = "/offload"
_BEYOND_GRACE = 15
"""Seconds of a pod's end besides `grace_period`: 5 of the runtime's preStop, and some to exit."""

_SECURITY = {
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
}
"""The pod's; `fsGroup` makes the claim writable for the image's user."""


def helm_values(needs: Needs) -> list[dict[str, Any]]:
    """Returns values for the Helm chart, as one document."""
    model = {
        "name": needs.name,
        "uri": None if needs.model_id else WHERE_THE_MODEL_LIES,
        "id": needs.model_id,
        "revision": needs.model_revision,
    }
    offload: dict[str, Any] = {"enabled": needs.claim is not None}
    if needs.claim is not None:
        offload["persistence"] = {"size": as_quantity(needs.claim)}
    memory = as_quantity(needs.memory)
    requests = {"cpu": needs.processors, "memory": memory}
    values = {
        "model": {name: value for name, value in model.items() if value is not None},
        "accelerators": needs.accelerators,
        "resources": {"requests": requests, "limits": {"memory": memory}},
        "offload": offload,
        "settings": needs.settings,
    }
    if "request_timeout" in needs.settings:
        values["kserve"] = {"timeout": math.ceil(needs.request_timeout)}
    return [values]


def inference_service(needs: Needs) -> list[dict[str, Any]]:
    """Returns an InferenceService and, before it, the claim of its offload volume if it needs one.

    What KServe would fill in and must not is written: 1 processor and 2 GiB as limits, a rollout
    that wants the GPUs twice, an autoscaler by processor use.
    """
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": needs.title,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "none",
            },
        },
        "spec": {"predictor": _predictor(needs)},
    }
    return [service] if needs.claim is None else [_claim(needs, needs.claim), service]


def _predictor(needs: Needs) -> dict[str, Any]:
    predictor = {
        "minReplicas": 1,
        "deploymentStrategy": {"type": "Recreate"},
        "timeout": math.ceil(needs.request_timeout),
        "terminationGracePeriodSeconds": math.ceil(needs.grace_period) + _BEYOND_GRACE,
        "serviceAccountName": _RUNTIME,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": _SECURITY,
        "model": _model(needs),
    }
    if needs.claim is not None:
        claim = {"claimName": _claim_name(needs)}
        predictor["volumes"] = [{"name": "offload", "persistentVolumeClaim": claim}]
    return predictor


def _model(needs: Needs) -> dict[str, Any]:
    model: dict[str, Any] = {
        "modelFormat": {"name": "huggingface"},
        "runtime": _RUNTIME,
        "protocolVersion": "v2",
    }
    if needs.model_id is None:
        model["storageUri"] = WHERE_THE_MODEL_LIES
    else:
        model["env"] = [{"name": "HF_HOME", "value": f"{_MOUNT}/huggingface"}]
    arguments = _arguments(needs)
    if arguments:
        model["args"] = arguments
    amounts = {"cpu": needs.processors, "memory": as_quantity(needs.memory)} | needs.accelerators
    model["resources"] = {"requests": amounts, "limits": dict(amounts)}
    if needs.claim is not None:
        model["volumeMounts"] = [{"name": "offload", "mountPath": _MOUNT}]
    return model


def _arguments(needs: Needs) -> list[str]:
    """Flags, after the runtime's own: the last one of a name counts."""
    flags = {
        "model_name": None if needs.name == needs.title else needs.name,
        "model_id": needs.model_id,
        "model_revision": needs.model_revision,
        "offload_folder": None if needs.claim is None else _MOUNT,
        **needs.settings,
    }
    return [f"--{name}={_written(value)}" for name, value in flags.items() if value is not None]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _claim(needs: Needs, size: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": _claim_name(needs)},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": as_quantity(size)}},
        },
    }


def _claim_name(needs: Needs) -> str:
    return f"{needs.title}-offload"


FORMS = {"helm-values": helm_values, "inferenceservice": inference_service}
"""What a deployment is written as, by the name of the command's output."""


def about(placement: Placement) -> list[str]:
    """Returns what a plan says of itself, a line each."""
    first = f"{placement.architecture} in {placement.dtype}, limited by {placement.limited_by}"
    return [first, *placement.notes]


def as_yaml(lines: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> str:
    """Returns documents as YAML, with comments and what is left open above them.

    Args:
        lines: What the comments say, a line each.
        documents: Helm values, or Kubernetes' objects.
    """
    text = yaml.safe_dump_all(documents, sort_keys=False, width=10_000)
    comments = list(lines)
    if WHERE_THE_MODEL_LIES in text:
        wanted = "put in the claim and path where the model lies, or its URI"
        comments.append(f"{WHERE_THE_MODEL_LIES}: {wanted}")
    return "".join(f"# {line}\n" for line in comments) + text.rstrip("\n")
