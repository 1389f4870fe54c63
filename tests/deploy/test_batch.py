"""The Job of bulk work, of the chart and of the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from predictor.cli import parse_arguments
from predictor.settings import read_settings
from tests.deploy import objects, pod_security, pods
from tests.deploy.cases import BATCH, JOBS, MANY
from tests.deploy.helm import MANIFESTS, Object, read, render, template

every_case = pytest.mark.parametrize("case", JOBS)


def job_of(made: list[Object]) -> Object:
    (job,) = (obj for obj in made if obj["kind"] == "Job")
    return job


def container_of(job: Object) -> Object:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return dict(container)


@every_case
def test_a_release_is_a_job_and_no_server(case: str) -> None:
    made = render(JOBS[case])
    kinds = {obj["kind"] for obj in made}

    assert "Job" in kinds
    assert not kinds & {"Deployment", "Service", "InferenceService", "ServingRuntime", "Pod"}
    assert [objects.faults(obj) for obj in made] == [[] for _ in made]
    assert [pod_security.violations(pod) for pod in pods.pods([job_of(made)])] == [[]]


@every_case
def test_the_command_is_one_that_the_predictor_takes(case: str) -> None:
    container = container_of(job_of(render(JOBS[case])))
    environ = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    args = [arg.replace("$(JOB_COMPLETION_INDEX)", "0") for arg in container["args"]]
    command, flags = parse_arguments(args)

    assert command == "batch"
    files = {name: flags.pop(name) for name in ("input", "output", "shard")}
    assert all(path.is_relative_to("/batch") for path in (files["input"], files["output"]))
    read_settings(flags, environ=environ)
    assert not {"ports", "livenessProbe", "readinessProbe", "lifecycle"} & set(container)


def test_shards_have_their_own_lines_and_results() -> None:
    job = job_of(render(MANY))
    spec, container = job["spec"], container_of(job)

    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (3, 60)
    assert "--shard=$(JOB_COMPLETION_INDEX)/4" in container["args"]
    assert "--output=/batch/out/r-$(JOB_COMPLETION_INDEX).jsonl" in container["args"]
    assert container["args"][-1] == "--max_batch_size=32"
    assert spec["template"]["metadata"]["labels"]["team"] == "models"
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in spec["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"batch": "work", "model": "models", "offload": "m-offload"} | {
        "offload": claims["offload"]
    }


def test_a_wrong_configuration_ends_the_job_and_a_drained_node_does_not() -> None:
    for job in (job_of(render(BATCH)), job_of(read(MANIFESTS / "jobs" / "batch.yaml"))):
        rules = {rule["action"]: rule for rule in job["spec"]["podFailurePolicy"]["rules"]}
        container = container_of(job)["name"]

        assert rules["FailJob"]["onExitCodes"]["values"] == [78]
        assert rules["FailJob"]["onExitCodes"]["containerName"] == container
        assert rules["Ignore"]["onPodConditions"][0]["type"] == "DisruptionTarget"
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_manifests_job_is_restricted_and_its_command_is_taken() -> None:
    made = read(MANIFESTS / "jobs" / "batch.yaml")
    job = job_of(made)
    args = [arg.replace("$(JOB_COMPLETION_INDEX)", "3") for arg in container_of(job)["args"]]

    assert [pod_security.violations(pod) for pod in pods.pods([job])] == [[]]
    command, flags = parse_arguments(args)
    assert (command, flags["shard"]) == ("batch", (3, job["spec"]["completions"]))
    assert flags["output"] == Path("/batch/results-3.jsonl")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"kserve": {"enabled": True}},
            "batch.enabled is a Job and no InferenceService: set kserve.enabled=false.",
        ),
        (
            {"batch": {"enabled": True}},
            "batch.enabled needs batch.claim, the claim that has the input and gets the results.",
        ),
        (
            {"podMonitor": {"enabled": True}},
            "podMonitor.enabled is for servers, and batch.enabled is a Job.",
        ),
        (
            {"batch": {**BATCH["batch"], "shards": 2}},
            "2 replicas cannot share an offload claim of ReadWriteOnce: set "
            "offload.ephemeral.enabled=true, or accessModes to ReadWriteMany.",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(change: dict[str, Any], sentence: str) -> None:
    done = template({**BATCH, **change})

    assert done.returncode != 0
    assert sentence in done.stderr
