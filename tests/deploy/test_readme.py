"""The pages about deployment agree with the chart, its notes and the tests on a cluster."""

from __future__ import annotations

import re
import shlex

from tests.cluster.kubectl import WHY_IT_ENDED
from tests.deploy.helm import APIS, CHART, ROOT, helm, loaded

DOCS = ROOT / "docs"
KSERVE = (DOCS / "getting-started" / "kserve.md").read_text()


def test_how_to_read_why_a_pod_ended_is_what_the_cluster_tests_ask() -> None:
    query = f'-o jsonpath="{WHY_IT_ENDED}"'
    assert query in (DOCS / "guides" / "troubleshooting.md").read_text()
    assert query in (CHART / "templates" / "NOTES.txt").read_text()


def test_every_path_of_the_charts_readme_is_there() -> None:
    text = (CHART / "README.md").read_text()
    paths = set(re.findall(r"(?<![\w/.-])(?:manifests|helm|docs)/[\w./-]*(?<!\.)", text))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_requests_go_to_the_release_that_is_installed() -> None:
    (command,) = re.findall(r"^helm install (.*)$", KSERVE, re.MULTILINE)
    offered = [f"--api-versions={api}" for api in APIS]
    arguments = [word.replace("helm/", f"{CHART}/") for word in shlex.split(command)]
    arguments = [str(CHART) if word == "./helm" else word for word in arguments]
    made = loaded(helm("template", *arguments, *offered).stdout)
    (service,) = (made_object for made_object in made if made_object["kind"] == "InferenceService")
    name = service["metadata"]["name"]
    assert f"inferenceservice/{name} " in KSERVE
    assert f"service/{name}-predictor 8080:80" in KSERVE
