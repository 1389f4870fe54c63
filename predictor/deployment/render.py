"""Render a model's requirements as Helm values or as an InferenceService.

This module knows the values of the chart in ``helm/``, the runtime of ``manifests/`` and the fields
of KServe's v1beta1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from predictor.deployment.sizing import Requirements
from predictor.placement.plan import Placement
from predictor.placement.report import describe_experts
from predictor.quantity import as_quantity

MODEL_URI_PLACEHOLDER = "pvc://CLAIM/PATH"
"""A placeholder for the unknown URI. Kubernetes refuses a claim of such a name."""

_RUNTIME = "accelerate-predictor"
_MOUNT = "/offload"
_BEYOND_GRACE = 15
"""Seconds of a pod's termination besides `grace_period`: 5 of the runtime's preStop, 10 to exit."""

_SECURITY = {
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
}
"""The pod's security context. `fsGroup` makes the claim writable for the image's user."""


def helm_values(requirements: Requirements) -> list[dict[str, Any]]:
    """Return values for the Helm chart, as one document."""
    model = {
        "name": requirements.name,
        "uri": None if requirements.fetches_model else MODEL_URI_PLACEHOLDER,
        "id": requirements.model_id,
        "revision": requirements.model_revision,
    }
    offload: dict[str, Any] = {"enabled": requirements.claim is not None}
    if requirements.claim is not None:
        offload["persistence"] = {"size": as_quantity(requirements.claim)}
    memory = as_quantity(requirements.memory)
    requests = {"cpu": requirements.processors, "memory": memory}
    values = {
        "model": {name: value for name, value in model.items() if value is not None},
        "accelerators": requirements.accelerators,
        "resources": {"requests": requests, "limits": {"memory": memory}},
        "offload": offload,
        "settings": requirements.settings,
    }
    if "request_timeout" in requirements.settings:
        values["kserve"] = {"timeout": math.ceil(requirements.request_timeout)}
    return [values]


def inference_service(requirements: Requirements) -> list[dict[str, Any]]:
    """Return an InferenceService, preceded by the claim of its offload volume if it needs one.

    It sets the fields for which KServe's defaults are unsuitable. These are limits of 1 processor
    and 2 GiB, a rollout that needs the GPUs twice, and autoscaling by processor use.
    """
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": requirements.resource_name,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "none",
            },
        },
        "spec": {"predictor": _predictor(requirements)},
    }
    if requirements.claim is None:
        return [service]
    return [_claim(requirements, requirements.claim), service]


def _predictor(requirements: Requirements) -> dict[str, Any]:
    predictor = {
        "minReplicas": 1,
        "deploymentStrategy": {"type": "Recreate"},
        "timeout": math.ceil(requirements.request_timeout),
        "terminationGracePeriodSeconds": math.ceil(requirements.grace_period) + _BEYOND_GRACE,
        "serviceAccountName": _RUNTIME,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": _SECURITY,
        "model": _model(requirements),
    }
    if requirements.claim is not None:
        claim = {"claimName": _claim_name(requirements)}
        predictor["volumes"] = [{"name": "offload", "persistentVolumeClaim": claim}]
    return predictor


def _model(requirements: Requirements) -> dict[str, Any]:
    model: dict[str, Any] = {
        "modelFormat": {"name": "huggingface"},
        "runtime": _RUNTIME,
        "protocolVersion": "v2",
    }
    if not requirements.fetches_model:
        model["storageUri"] = MODEL_URI_PLACEHOLDER
    elif requirements.model_id is not None:
        model["env"] = [{"name": "HF_HOME", "value": f"{_MOUNT}/huggingface"}]
    arguments = _arguments(requirements)
    if arguments:
        model["args"] = arguments
    amounts = {
        "cpu": requirements.processors,
        "memory": as_quantity(requirements.memory),
        **requirements.accelerators,
    }
    model["resources"] = {"requests": amounts, "limits": dict(amounts)}
    if requirements.claim is not None:
        model["volumeMounts"] = [{"name": "offload", "mountPath": _MOUNT}]
    return model


def _arguments(requirements: Requirements) -> list[str]:
    """Return the flags, which follow the runtime's own. The last flag of a name counts."""
    is_named = requirements.name != requirements.resource_name
    flags = {
        "model_name": requirements.name if is_named else None,
        "model_id": requirements.model_id,
        "model_revision": requirements.model_revision,
        "offload_folder": None if requirements.claim is None else _MOUNT,
        **requirements.settings,
    }
    return [f"--{name}={_flag_value(value)}" for name, value in flags.items() if value is not None]


def _flag_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _claim(requirements: Requirements, size: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": _claim_name(requirements)},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": as_quantity(size)}},
        },
    }


def _claim_name(requirements: Requirements) -> str:
    return f"{requirements.resource_name}-offload"


RENDERERS = {"helm-values": helm_values, "inferenceservice": inference_service}
"""The functions that render a deployment, by the value of the command's ``--output``."""


def summary(placement: Placement) -> list[str]:
    """Return a plan's summary and notes, a line each."""
    first = f"{placement.architecture} in {placement.dtype}, limited by {placement.limited_by}"
    experts = [describe_experts(placement)] if placement.experts else []
    return [first, *experts, *placement.notes]


def to_yaml(comments: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents as YAML below comments, the last of which explains the placeholder if any.

    Args:
        comments: The comments, a line each.
        documents: Helm values or Kubernetes objects.
    """
    text = yaml.safe_dump_all(documents, sort_keys=False, width=10_000)
    lines = list(comments)
    if MODEL_URI_PLACEHOLDER in text:
        hint = "put in the claim and path where the model lies, or its URI"
        lines.append(f"{MODEL_URI_PLACEHOLDER}: {hint}")
    return "".join(f"# {line}\n" for line in lines) + text.rstrip("\n")
