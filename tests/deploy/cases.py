"""Values that together make every condition of the chart both true and false."""

from __future__ import annotations

from typing import Any

import yaml

from tests.deploy.helm import CHART

STORIES = {
    file.stem: yaml.safe_load(file.read_text())
    for file in sorted((CHART / "examples").glob("*.yaml"))
}

_POD: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "podLabels": {"team": "models"},
    "podAnnotations": {"note": "text"},
    "extraArgs": ["--max_batch_size=8"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "more", "configMap": {"name": "more"}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"team": "models"}},
        }
    ],
    "priorityClassName": "models",
    "runtimeClassName": "nvidia",
    "scratch": {"tmpSize": "1Gi"},
    "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"cpu": 4, "memory": "8Gi"}},
}

_AROUND: dict[str, Any] = {
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {}}],
        "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}],
    },
    "podDisruptionBudget": {"enabled": True},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "docsUrl": "https://docs.example.com",
    },
    "dashboard": {
        "enabled": True,
        "namespace": "monitoring",
        "annotations": {"grafana_folder": "Models"},
    },
    "autoscaling": {"enabled": True, "maxReplicas": 4},
    "serviceAccount": {"annotations": {"example.com/role": "reader"}},
}

_SHARED_CLAIM = {"accessModes": ["ReadWriteMany"]}

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    **STORIES,
    "everything under KServe": {
        **_POD,
        **_AROUND,
        "fullnameOverride": "named",
        "image": {"digest": f"sha256:{'0' * 64}"},
        "model": {"name": "known", "id": "org/model", "revision": "v1"},
        "hubToken": {"value": "secret"},
        "accelerators": {"amd.com/gpu": 1},
        "offload": {"persistence": {"existingClaim": "there", **_SHARED_CLAIM}},
        "settings": {
            "dtype": "bfloat16",
            "max_body_size": 1048576,
            "memory_headroom": 0.1,
            "verify_store": True,
            "grace_period": 59.5,
            "device_map": {"transformer.h.0": 0},
        },
        "strategy": "RollingUpdate",
        "kserve": {
            "annotations": {"example.com/owner": "team"},
            "runtime": {"name": "own-runtime", "autoSelect": True},
        },
    },
    "little under KServe": {
        "offload": {"enabled": False},
        "kserve": {"runtime": {"create": False, "name": "accelerate-predictor"}},
        "serviceAccount": {"create": False},
        "rbac": {"create": False},
        "autoscaling": {"enabled": True, "by": "hpa", "metric": "queueSeconds"},
        "extraArgs": ["--dtype=float32"],
        "networkPolicy": {"enabled": True},
    },
    "everything in Knative": {
        **_POD,
        **_AROUND,
        "model": {"uri": "hf://org/model"},
        "hubToken": {"existingSecret": "token"},
        "accelerators": {"nvidia.com/gpu": 1},
        "offload": {"persistence": _SHARED_CLAIM},
        "kserve": {"deploymentMode": "Knative"},
        "networkPolicy": {"enabled": False},
        "autoscaling": {"enabled": False},
    },
    "everything without KServe": {
        **_POD,
        **_AROUND,
        "kserve": {"enabled": False},
        "model": {"uri": "pvc://models/family/model"},
        "hubToken": {"existingSecret": "token", "key": "token"},
        "accelerators": {"nvidia.com/gpu": 2},
        "offload": {
            "persistence": {"storageClass": "-", "size": "1Ti"},
            "ephemeral": {"enabled": True},
        },
        "service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
    },
    "little without KServe": {
        "kserve": {"enabled": False},
        "model": {"uri": "pvc://models"},
        "offload": {"enabled": False},
    },
    "a model of the hub without KServe": {
        "kserve": {"enabled": False},
        "dashboard": {"enabled": True, "labels": {"dashboards": "models"}},
        "autoscaling": {"enabled": True, "by": "hpa", "maxReplicas": 1},
        "model": {"id": "org/model"},
        "hubToken": {"existingSecret": "token"},
        "offload": {
            "persistence": {
                "retain": False,
                "annotations": {"example.com/backup": "none"},
                "storageClass": "fast",
            }
        },
    },
    "a small download without KServe": {
        "kserve": {"enabled": False},
        "model": {"id": "org/model"},
        "offload": {"enabled": False},
    },
}

BATCH: dict[str, Any] = {
    "kserve": {"enabled": False},
    "model": {"uri": "pvc://models/qwen"},
    "batch": {"enabled": True, "claim": "work", "input": "in.jsonl", "output": "out/r"},
}
_LITTLE: dict[str, Any] = {
    "kserve": {"enabled": False},
    "offload": {"enabled": False},
    "batch": {"enabled": True, "claim": "work"},
}
MANY = {
    **BATCH,
    "offload": {"persistence": {"accessModes": ["ReadWriteMany"]}},
    "batch": {**BATCH["batch"], "shards": 4, "backoffLimit": 3, "ttlSecondsAfterFinished": 60},
    "extraArgs": ["--max_batch_size=32"],
    "podLabels": {"team": "models"},
    "podAnnotations": {"note": "text"},
    "settings": {"max_model_len": 4096},
}
JOBS: dict[str, dict[str, Any]] = {"batch": BATCH, "little": _LITTLE, "many": MANY}
"""Releases that are Jobs and no servers."""
