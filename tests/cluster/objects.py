"""What the tests apply to a cluster: the manifests, and the demo with another setting."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import yaml

from tests.cluster.kubectl import Object

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
_LOAD = Path(__file__).with_name("load.py")


def base(image: str) -> list[Object]:
    """Returns what ``kubectl apply -k manifests`` applies, with this image."""
    listed = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    objects = [found for name in listed for found in _read(MANIFESTS / name)]
    for found in objects:
        for container in found.get("spec", {}).get("containers", ()):
            container["image"] = image
    return objects


def demo(name: str, **settings: str) -> list[Object]:
    """Returns the demo of ``manifests/examples`` under another name and with some settings more."""
    objects = _read(MANIFESTS / "examples" / "demo.yaml")
    for found in objects:
        found["metadata"]["name"] = found["metadata"]["name"].replace("demo", name)
    (service,) = (found for found in objects if found["kind"] == "InferenceService")
    predictor = service["spec"]["predictor"]
    for volume in predictor["volumes"]:
        claim = volume["persistentVolumeClaim"]
        claim["claimName"] = claim["claimName"].replace("demo", name)
    given = {f"PREDICTOR_{setting.upper()}": value for setting, value in settings.items()}
    kept = [one for one in predictor["model"]["env"] if one["name"] not in given]
    added = [{"name": variable, "value": value} for variable, value in given.items()]
    predictor["model"]["env"] = kept + added
    return objects


def load(image: str, service: str, model: str, seconds: int, like: Iterable[Object]) -> Object:
    """Returns a pod that asks a Service's model without pause, as restricted as the predictor's."""
    (runtime,) = (found for found in like if found["kind"] == "ServingRuntime")
    security = copy.deepcopy(runtime["spec"]["containers"][0]["securityContext"])
    amounts = {"cpu": "500m", "memory": "128Mi"}
    command = ["python3", "-c", _LOAD.read_text(), f"http://{service}", model, str(seconds)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "load"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "load",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "securityContext": security,
                    "resources": {"requests": amounts, "limits": amounts},
                }
            ],
        },
    }


def chart_values(image: str, *, kserve: bool, max_model_len: int) -> Object:
    """Returns values for the demo, offloaded, on a claim that outlives its release."""
    repository, _, tag = image.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "kserve": {"enabled": kserve},
        "offload": {"persistence": {"size": "1Gi"}},
        "settings": {
            "max_memory": {"cpu": "8MiB"},
            "max_model_len": max_model_len,
            "prefill_chunk": 64,
            "offload_store": "always",
        },
    }


def _read(file: Path) -> list[Object]:
    return [found for found in yaml.safe_load_all(file.read_text()) if found]
