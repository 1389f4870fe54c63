"""Bulk work as an Indexed Job on a cluster: shards of one file, and a pod that is ended."""

from __future__ import annotations

import json

import pytest

from tests.cluster import objects
from tests.cluster.kubectl import READY_SECONDS, Cluster, Object
from tests.deploy.helm import CHART

pytestmark = pytest.mark.cluster

LINES, SHARDS = 60, 2
JOB = "batch.kubernetes.io/job-name=bulk"


def values(image: str) -> Object:
    """Return the demo's values as a Job whose pods share the claims of one node."""
    common = objects.chart_values(image, kserve=False, max_model_len=256)
    persistence = {"existingClaim": "bulk-store", "accessModes": ["ReadWriteMany"]}
    return {
        **common,
        "model": {"name": "demo"},
        "offload": {"enabled": True, "persistence": persistence},
        "batch": {"enabled": True, "claim": "bulk", "output": "results", "shards": SHARDS},
        "extraArgs": ["--max_batch_size=4"],
    }


def shell(cluster: Cluster, name: str) -> str:
    """Start a pod that has the claim at /models, and return its name."""
    base = objects.base(cluster.image)
    pod = objects.program(name, cluster.image, "load.py", like=base, claim="bulk")
    pod["spec"]["containers"][0]["command"] = ["sleep", "3600"]
    cluster.apply([pod])
    cluster.kubectl("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={READY_SECONDS}s")
    return name


def request(number: int) -> str:
    body = {"model": "demo", "prompt": "Today " * (number % 9 + 1), "max_tokens": 30}
    line = {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(line)


def test_shards_answer_one_file_and_a_pod_that_was_ended_goes_on(
    cluster: Cluster, request_lines: str
) -> None:
    cluster.apply([objects.claim("bulk", "1Gi"), objects.claim("bulk-store", "1Gi")])
    pod = shell(cluster, "bulk-shell")
    write = f"open('/models/requests.jsonl', 'w').write({request_lines!r})"
    cluster.python(pod, write, container="program")
    cluster.helm("install", "bulk", str(CHART), values=values(cluster.image))

    def results(index: int) -> list[Object]:
        read = f"print(open('/models/results-{index}.jsonl').read())"
        output = cluster.python(pod, read, container="program")
        return [json.loads(line) for line in output.splitlines() if line]

    cluster.until(lambda: len(results(0)) >= 2, "the first results")
    first = cluster.pods(f"{JOB},batch.kubernetes.io/job-completion-index=0")[0]
    cluster.kubectl("delete", "pod", first["metadata"]["name"], "--grace-period=5")
    done = ("--for=condition=Complete", f"--timeout={READY_SECONDS}s")
    cluster.kubectl("wait", "job/bulk", *done, seconds=READY_SECONDS)

    whole = [result for index in range(SHARDS) for result in results(index)]
    assert sorted(int(result["custom_id"]) for result in whole) == list(range(LINES))
    assert all(result["response"]["status_code"] == 200 for result in whole)
    assert len(results(0)) == len(results(1)) == LINES // SHARDS


@pytest.fixture
def request_lines() -> str:
    return "\n".join(request(number) for number in range(LINES))


def test_a_job_that_is_misconfigured_fails_at_once(cluster: Cluster) -> None:
    cluster.apply([objects.claim("bulk-empty", "1Gi")])
    wrong = values(cluster.image)
    wrong["batch"] |= {"claim": "bulk-empty", "shards": 1}
    wrong["offload"] = {"enabled": False}
    cluster.helm("install", "misled", str(CHART), values=wrong)
    done = ("--for=condition=Failed", f"--timeout={READY_SECONDS}s")
    cluster.kubectl("wait", "job/misled", *done, seconds=READY_SECONDS)

    status = cluster.get("job", "misled")["status"]
    assert status["failed"] == 1
    assert "PodFailurePolicy" in {each["reason"] for each in status["conditions"]}
