"""The chart renders the values that `predictor plan` prints to the same requests."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
import yaml

from predictor import cli
from tests.deploy import objects, pods
from tests.deploy.helm import ROOT, Object, render

BLOOM = ("examples/bloom-176b.json", "--gpus=2x80GiB", "--memory=128GiB", "--disk=400GiB")
"""A model that is partly on disk."""

DEMO = ("examples/demo-model", "--memory=8GiB")
"""A model that is whole in memory."""

SETTINGS = (
    "--model_name=named",
    "--cpus=6",
    "--max_model_len=128",
    '--max_memory={"cpu": "100GiB"}',
    "--dtype=bfloat16",
    "--request_timeout=1800.5",
    "--grace_period=60",
    "--memory_reserve=256Mi",
    "--verify_store",
)
FLAGS = pytest.mark.parametrize("flags", [BLOOM, DEMO, (*BLOOM, *SETTINGS), (*DEMO, "--cpus=2")])


def printed(monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[Any]:
    """Return the command's output, parsed as YAML."""
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["plan", *flags]) == 0
    return list(yaml.safe_load_all(out.getvalue()))


def by_kind(objs: list[Object]) -> dict[str, Object]:
    return {obj["kind"]: obj for obj in objs}


@FLAGS
def test_the_chart_requests_the_same_as_the_plans_own_inference_service(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    (values,) = printed(monkeypatch, *flags, "--output=helm-values")
    plans = by_kind(printed(monkeypatch, *flags, "--output=inferenceservice"))
    name = plans["InferenceService"]["metadata"]["name"]
    charts = by_kind(render({**values, "fullnameOverride": name}))

    assert [objects.faults(obj) for obj in plans.values()] == [[] for _ in plans]
    assert comparable(plans["InferenceService"]) == comparable(charts["InferenceService"])
    if "PersistentVolumeClaim" in plans:
        claims = [objs["PersistentVolumeClaim"] for objs in (plans, charts)]
        assert claims[0]["spec"] == claims[1]["spec"]
        assert claims[0]["metadata"]["name"] == claims[1]["metadata"]["name"]
    else:
        assert "PersistentVolumeClaim" not in charts


def comparable(service: Object) -> Object:
    """Return an InferenceService's predictor without its names, and with its settings parsed."""
    predictor = service["spec"]["predictor"]
    model = {**predictor["model"], "runtime": "accelerate-predictor"}
    (container,) = containers([{**service, "spec": {"predictor": {**predictor, "model": model}}}])
    if "volumes" not in predictor:
        # Without an offload volume the chart starts the new pod before it stops the old one.
        predictor = {**predictor, "deploymentStrategy": None}
    others = ("args", "env", "runtime")
    return {
        **predictor,
        "serviceAccountName": None,
        "settings": pods.settings(container),
        "model": {field: value for field, value in model.items() if field not in others},
    }


def containers(objs: list[Object]) -> list[Object]:
    """Return the predictor's own containers."""
    everything = [one for pod in pods.pods(objs) for one in pod["containers"]]
    return [one for one in everything if one["name"] == "kserve-container"]


@FLAGS
def test_the_charts_deployment_requests_the_same_too(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    (values,) = printed(monkeypatch, *flags, "--output=helm-values")
    values["kserve"] = {**values.get("kserve", {}), "enabled": False}
    (container,) = by_kind(render(values))["Deployment"]["spec"]["template"]["spec"]["containers"]
    amounts = values["resources"]["requests"] | values["accelerators"]

    assert container["resources"]["requests"] == amounts
    assert container["resources"]["limits"] == {
        name: amount for name, amount in amounts.items() if name != "cpu"
    }


def test_a_pod_of_the_chart_gets_the_same_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's settings and the stated resources give the same plan again."""
    flags = (*BLOOM, *SETTINGS)
    (values,) = printed(monkeypatch, *flags, "--output=helm-values")
    (plan,) = printed(monkeypatch, *flags, "--output=json")
    (container,) = containers(render(values))
    for one in container["env"]:
        if one["name"].startswith("PREDICTOR_"):
            monkeypatch.setenv(one["name"], one["value"])
    (again,) = printed(monkeypatch, *BLOOM, "--output=json")

    assert json.dumps(again) == json.dumps(plan)
