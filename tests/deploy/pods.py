"""The pods that objects lead to: a Deployment's, a Job's, a test's, and those that KServe makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from predictor.cli import _parse
from predictor.settings import Settings, read_settings
from tests.deploy.helm import MANIFESTS, Object, read

_OF_THE_MODEL = ("modelFormat", "runtime", "protocolVersion", "storageUri")


def pods(objects: Iterable[Object]) -> list[Object]:
    """Returns the pod spec of everything that has one; a runtime's alone is not a whole pod."""
    known = [*objects, *read(MANIFESTS / "serving-runtime.yaml")]
    runtimes = {found["metadata"]["name"]: found for found in known if _is_runtime(found)}
    made = {
        "Pod": lambda found: found["spec"],
        "Deployment": lambda found: found["spec"]["template"]["spec"],
        "Job": lambda found: found["spec"]["template"]["spec"],
        "InferenceService": lambda found: _of_service(found, runtimes),
    }
    return [made[found["kind"]](found) for found in known if found["kind"] in made]


def serving(objects: Iterable[Object]) -> tuple[Object, Object]:
    """Returns the one pod spec that serves, without the chart's test, and its one container."""
    (pod,) = pods(found for found in objects if found["kind"] != "Pod")
    (container,) = pod["containers"]
    return pod, container


def settings(container: Object) -> Settings:
    """Returns what the predictor makes of a container's flags and environment."""
    environ = {name["name"]: name["value"] for name in container["env"] if "value" in name}
    command, flags = _parse(container["args"])
    assert command == "serve"
    return read_settings(flags, environ=environ)


def _is_runtime(found: Object) -> bool:
    return found["kind"] in ("ServingRuntime", "ClusterServingRuntime")


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
    """KServe's merge: lists one after the other, `{{.Name}}` filled in, else the model's word."""
    own = {field: value for field, value in model.items() if field not in _OF_THE_MODEL}
    lists: dict[str, list[Any]] = {
        field: [*base.get(field, ()), *own.get(field, ())]
        for field in ("args", "env", "ports", "volumeMounts")
    }
    lists["args"] = [flag.replace("{{.Name}}", name) for flag in lists["args"]]
    return {**base, **own, **lists}
