"""The objects that the tests apply: the manifests, variants of the demo, programs in pods."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kubectl import Object

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
PROGRAMS = Path(__file__).parent
SMALL = {"cpu": "100m", "memory": "256Mi"}
"""The requests of a pod in place of its example's, so that it fits a small node."""


def base(image: str) -> list[Object]:
    """Return the objects of ``kubectl apply -k manifests``, with this image."""
    listed = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    return _with_image([obj for name in listed for obj in _read(MANIFESTS / name)], image)


def example(name: str, image: str, **environ: str) -> list[Object]:
    """Return an example with this image, additional environment, and requests for a small node.

    Its limits stay, as do its accelerators, whose requests must equal their limits.
    """
    objects = _with_image(_read(MANIFESTS / "examples" / f"{name}.yaml"), image)
    container = _container(service(objects))
    container["resources"]["requests"] |= SMALL
    container.setdefault("env", []).extend(
        {"name": variable, "value": value} for variable, value in environ.items()
    )
    return objects


def service(objects: Iterable[Object]) -> Object:
    """Return the one InferenceService."""
    (one,) = (obj for obj in objects if obj["kind"] == "InferenceService")
    return one


def demo(name: str, **settings: str) -> list[Object]:
    """Return the demo of ``manifests/examples`` under another name, with additional settings."""
    objects = _read(MANIFESTS / "examples" / "demo.yaml")
    for obj in objects:
        obj["metadata"]["name"] = obj["metadata"]["name"].replace("demo", name)
    predictor = service(objects)["spec"]["predictor"]
    predictor["model"]["resources"]["requests"] = dict(SMALL)
    for volume in predictor["volumes"]:
        claim = volume["persistentVolumeClaim"]
        claim["claimName"] = claim["claimName"].replace("demo", name)
    environ = {f"PREDICTOR_{setting.upper()}": value for setting, value in settings.items()}
    kept = [one for one in predictor["model"]["env"] if one["name"] not in environ]
    added = [{"name": variable, "value": value} for variable, value in environ.items()]
    predictor["model"]["env"] = kept + added
    return objects


def replicas(objects: list[Object], count: int) -> list[Object]:
    """Return a service's objects with `count` pods, which an update replaces one by one."""
    predictor = service(objects)["spec"]["predictor"]
    predictor["minReplicas"] = count
    rolling = {"maxSurge": 1, "maxUnavailable": 0}
    predictor["deploymentStrategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
    return objects


def load(name: str, image: str, target: str, model: str, like: Iterable[Object]) -> Object:
    """Return a pod that sends requests to a Service without pause until SIGTERM."""
    return program(name, image, "load.py", f"http://{target}", model, like=like)


def program(
    name: str,
    image: str,
    file: str,
    *arguments: str,
    like: Iterable[Object],
    claim: str | None = None,
    memory: str = "128Mi",
) -> Object:
    """Return a pod that runs a program of these tests, as restricted as the predictor's.

    Args:
        name: The pod's name, and its label ``app``.
        image: The predictor's image.
        file: The program, beside this file or in ``tests``.
        arguments: The program's arguments.
        like: Objects with the runtime whose security context the pod gets.
        claim: A claim to mount at ``/models``.
        memory: The pod's memory limit.
    """
    (runtime,) = (obj for obj in like if obj["kind"] == "ServingRuntime")
    security = copy.deepcopy(runtime["spec"]["containers"][0]["securityContext"])
    (source,) = (p for p in (PROGRAMS / file, ROOT / "tests" / file) if p.exists())
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    if claim is not None:
        mounts.append({"name": "models", "mountPath": "/models"})
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": claim}})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "program",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", source.read_text(), *arguments],
                    "securityContext": security,
                    "resources": {
                        "requests": {"cpu": "100m", "memory": memory},
                        "limits": {"memory": memory},
                    },
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


def port(name: str, number: int) -> Object:
    """Return a Service from port 80 to a port of the pod with that name as its label."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": number}]},
    }


def claim(name: str, size: str, **spec: Any) -> Object:
    """Return a claim of the default class, unless `spec` overrides it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def volume(name: str, size: str, folder: Path, namespace: str, of_claim: str) -> Object:
    """Return a volume that is a folder of the node, reserved for one claim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": size},
            "claimRef": {"namespace": namespace, "name": of_claim},
            "hostPath": {"path": str(folder)},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
        },
    }


def chart_values(image: str, *, kserve: bool, max_model_len: int) -> Object:
    """Return the demo's values for a small node, with a store on its claim."""
    values: Object = yaml.safe_load((ROOT / "helm" / "examples" / "demo.yaml").read_text())
    values["settings"] |= {"max_model_len": max_model_len, "offload_store": "always"}
    resources = {"requests": SMALL, "limits": {"cpu": 1}}
    return {**values, **chart_image(image), "kserve": {"enabled": kserve}, "resources": resources}


def chart_image(image: str) -> Object:
    """Return the chart's values for an image."""
    repository, _, tag = image.rpartition(":")
    return {"image": {"repository": repository, "tag": tag}}


def _container(one: Object) -> Object:
    predictor = one["spec"]["predictor"]
    container: Object = (
        predictor["containers"][0] if "containers" in predictor else predictor["model"]
    )
    return container


def _with_image(objects: Sequence[Object], image: str) -> list[Object]:
    for obj in objects:
        spec = obj.get("spec", {})
        for container in spec.get("predictor", spec).get("containers", ()):
            container["image"] = image
    return list(objects)


def loaded(text: str) -> list[Object]:
    """Return the objects in YAML text."""
    return [obj for obj in yaml.safe_load_all(text) if obj]


def _read(file: Path) -> list[Object]:
    return loaded(file.read_text())
