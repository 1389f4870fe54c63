"""The chart takes what `predictor plan` prints, and asks a cluster for the same."""

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
"""A part of it is on disk."""

DEMO = ("examples/demo-model", "--memory=8GiB")
"""All of it is in memory."""

SETTINGS = (
    "--model_name=told",
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
    """What the command prints, read as YAML."""
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["plan", *flags]) == 0
    return list(yaml.safe_load_all(out.getvalue()))


def by_kind(found: list[Object]) -> dict[str, Object]:
    return {each["kind"]: each for each in found}


@FLAGS
def test_the_chart_asks_for_what_the_plans_own_inference_service_asks_for(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    (values,) = printed(monkeypatch, *flags, "--output=helm-values")
    plans = by_kind(printed(monkeypatch, *flags, "--output=inferenceservice"))
    name = plans["InferenceService"]["metadata"]["name"]
    charts = by_kind(render({**values, "fullnameOverride": name}))

    assert [objects.faults(found) for found in plans.values()] == [[] for _ in plans]
    assert asked(plans["InferenceService"]) == asked(charts["InferenceService"])
    if "PersistentVolumeClaim" in plans:
        claims = [found["PersistentVolumeClaim"] for found in (plans, charts)]
        assert claims[0]["spec"] == claims[1]["spec"]
        assert claims[0]["metadata"]["name"] == claims[1]["metadata"]["name"]
    else:
        assert "PersistentVolumeClaim" not in charts


def asked(service: Object) -> Object:
    """An InferenceService's predictor without its names, and its settings as they are read."""
    predictor = service["spec"]["predictor"]
    model = {**predictor["model"], "runtime": "accelerate-predictor"}
    (container,) = containers([{**service, "spec": {"predictor": {**predictor, "model": model}}}])
    if "volumes" not in predictor:
        # Where nothing is needed twice the chart lets one pod come before the other goes.
        predictor = {**predictor, "deploymentStrategy": None}
    others = ("args", "env", "runtime")
    return {
        **predictor,
        "serviceAccountName": None,
        "settings": pods.settings(container),
        "model": {field: value for field, value in model.items() if field not in others},
    }


def containers(found: list[Object]) -> list[Object]:
    """The predictor's own containers."""
    known = [one for pod in pods.pods(found) for one in pod["containers"]]
    return [one for one in known if one["name"] == "kserve-container"]


@FLAGS
def test_the_charts_deployment_asks_for_the_same_too(
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


def test_a_pod_of_the_charts_comes_to_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the container is told, in a pod that owns what was stated, is the same plan again."""
    flags = (*BLOOM, *SETTINGS)
    (values,) = printed(monkeypatch, *flags, "--output=helm-values")
    (plan,) = printed(monkeypatch, *flags, "--output=json")
    (container,) = containers(render(values))
    for one in container["env"]:
        if one["name"].startswith("PREDICTOR_"):
            monkeypatch.setenv(one["name"], one["value"])
    (again,) = printed(monkeypatch, *BLOOM, "--output=json")

    assert json.dumps(again) == json.dumps(plan)
