"""The chart's demo, its pod and the pod of `helm test`, as containers of the image."""

from __future__ import annotations

import pytest

from tests.deploy.cases import STORIES
from tests.deploy.helm import Object, render
from tests.deploy.pods import serving
from tests.image.containers import container, docker

pytestmark = pytest.mark.timeout(1200)  # the first test builds the image

FOLDERS = ("/tmp", "/offload")
RIGHTS = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def limited(described: Object) -> tuple[str, ...]:
    """Return arguments of ``docker run`` for a container's rights and limits."""
    assert described["securityContext"]["readOnlyRootFilesystem"] is True
    assert described["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    return (*RIGHTS, f"--memory={described['resources']['limits']['memory'].removesuffix('i')}")


def test_helm_test_passes_against_the_demo_in_the_image(image: str) -> None:
    made = render(STORIES["demo"])
    _, served = serving(made)
    (test_containers,) = (obj["spec"]["containers"] for obj in made if obj["kind"] == "Pod")
    environment = [f"--env={e['name']}={e['value']}" for e in served["env"] if "value" in e]
    folders = [f"--tmpfs={folder}:mode=1777" for folder in FOLDERS]
    words = (*limited(served), *folders, *environment, image, *served["args"])
    with container(*words, name="demo") as pod:
        assert "are streamed from disk" in pod.await_ready().log
        python, *script, _service, model = test_containers[0]["command"]
        beside = (
            *limited(test_containers[0]),
            f"--network=container:{pod.id}",
            f"--entrypoint={python}",
        )
        output = docker("run", "--rm", *beside, image, *script, "http://127.0.0.1:8080", model)
        assert [line[:3] for line in output.splitlines()] == ["V1:", "V2:"]
