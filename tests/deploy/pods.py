"""The pods of rendered objects: a Deployment's, a Job's, a test's, and those that KServe makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from predictor.cli import parse_arguments
from predictor.settings import Settings, read_settings
from tests.deploy.helm import MANIFESTS, Object, read

_MODEL_FIELDS = ("modelFormat", "runtime", "protocolVersion", "storageUri")


def pods(objects: Iterable[Object]) -> list[Object]:
    """Return the pod spec of each object that has a whole one, which a runtime alone has not."""
    everything = [*objects, *read(MANIFESTS / "serving-runtime.yaml")]
    runtimes = {obj["metadata"]["name"]: obj for obj in everything if _is_runtime(obj)}
    pod_of = {
        "Pod": lambda obj: obj["spec"],
        "Deployment": lambda obj: obj["spec"]["template"]["spec"],
        "Job": lambda obj: obj["spec"]["template"]["spec"],
        "InferenceService": lambda obj: _of_service(obj, runtimes),
    }
    return [pod_of[obj["kind"]](obj) for obj in everything if obj["kind"] in pod_of]


def serving(objects: Iterable[Object]) -> tuple[Object, Object]:
    """Return the pod spec that serves, which is not the chart's test, and its one container."""
    (pod,) = pods(obj for obj in objects if obj["kind"] != "Pod")
    (container,) = pod["containers"]
    return pod, container


def settings(container: Object) -> Settings:
    """Return the predictor's settings, read from a container's flags and environment."""
    environ = {name["name"]: name["value"] for name in container["env"] if "value" in name}
    command, flags = parse_arguments(container["args"])
    assert command == "serve"
    return read_settings(flags, environ=environ)


def _is_runtime(obj: Object) -> bool:
    return obj["kind"] in ("ServingRuntime", "ClusterServingRuntime")


def _of_service(service: Object, runtimes: dict[str, Object]) -> Object:
    predictor = service["spec"]["predictor"]
    if "containers" in predictor:
        return dict(predictor)
    model = predictor["model"]
    runtime = runtimes[model["runtime"]]["spec"]
    (base,) = runtime["containers"]
    return {
        **predictor,
        "containers": [_merged(base, model, service["metadata"]["name"])],
        "volumes": [*runtime["volumes"], *predictor.get("volumes", ())],
    }


def _merged(base: Object, model: Object, name: str) -> Object:
    """Merge as KServe does: lists are concatenated; of other fields the model's take precedence."""
    own = {field: value for field, value in model.items() if field not in _MODEL_FIELDS}
    lists: dict[str, list[Any]] = {
        field: [*base.get(field, ()), *own.get(field, ())]
        for field in ("args", "env", "ports", "volumeMounts")
    }
    lists["args"] = [flag.replace("{{.Name}}", name) for flag in lists["args"]]
    return {**base, **own, **lists}
