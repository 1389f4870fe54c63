"""The manifests: valid for the API server, allowed in a restricted namespace, and consistent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from predictor.cli import parse_arguments
from tests.deploy import objects, pod_security, pods
from tests.deploy.helm import MANIFESTS, ROOT, Object, kustomize, read

FILES = [file for file in sorted(MANIFESTS.rglob("*.yaml")) if file.name != "kustomization.yaml"]
EXAMPLES = sorted((MANIFESTS / "examples").glob("*.yaml"))

every_example = pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)


def base() -> list[Object]:
    return [obj for file in FILES if file.parent == MANIFESTS for obj in read(file)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_object_is_one_that_the_api_server_takes(file: Path) -> None:
    assert [objects.faults(obj) for obj in read(file)] == [[] for _ in read(file)]


@every_example
def test_every_pod_is_restricted(file: Path) -> None:
    assert [pod_security.violations(pod) for pod in pods.pods(read(file))] == [[]]


def test_the_check_of_objects_reports_a_wrong_one() -> None:
    (service, claim) = read(MANIFESTS / "examples" / "demo.yaml")
    service["spec"]["predictor"]["model"]["volumeMount"] = []
    claim["spec"]["size"] = "1Gi"
    assert "volumeMount" in str(objects.faults(service))
    assert "size" in str(objects.faults(claim))


def test_the_check_of_pods_reports_a_pod_that_is_not_restricted() -> None:
    pod = {
        "hostNetwork": True,
        "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
        "containers": [{"name": "main"}],
        "initContainers": [{"name": "first", "securityContext": {"privileged": True}}],
    }
    faults = pod_security.violations(pod)
    assert {"hostNetwork", "volume hostPath", "main: runAsNonRoot"} <= set(faults)
    assert {"first: privileged", "first: capabilities are not dropped"} <= set(faults)


@every_example
def test_an_example_is_whole(file: Path) -> None:
    """Its claim, service account and runtime are in it or the base, and its volume is mounted."""
    made = [*base(), *read(file)]
    names = {(obj["kind"], obj["metadata"]["name"]) for obj in made}
    pod, container = pods.serving(read(file))
    claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert {("PersistentVolumeClaim", claim["claimName"]) for claim in claims} <= names
    assert ("ServiceAccount", pod["serviceAccountName"]) in names
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(pods.settings(container).offload_folder) in mounted
    assert container["resources"]["limits"].items() == container["resources"]["requests"].items()


@every_example
def test_an_example_overrides_kserve_defaults_that_are_wrong_for_big_models(file: Path) -> None:
    (service,) = (obj for obj in read(file) if obj["kind"] == "InferenceService")
    predictor, annotations = service["spec"]["predictor"], service["metadata"]["annotations"]
    assert predictor["timeout"] == 600
    if annotations["serving.kserve.io/deploymentMode"] == "Standard":
        assert annotations["serving.kserve.io/autoscalerClass"] == "none"
        assert predictor["deploymentStrategy"] == {"type": "Recreate"}
        assert predictor["terminationGracePeriodSeconds"] == 40


@every_example
def test_kserve_takes_no_example_for_one_of_a_multi_model_server(file: Path) -> None:
    """KServe exempts custom containers and this one format, with a storageUri or without."""
    (service,) = (obj for obj in read(file) if obj["kind"] == "InferenceService")
    (runtime,) = read(MANIFESTS / "serving-runtime.yaml")
    model = service["spec"]["predictor"].get("model")
    formats = {one["name"]: one["autoSelect"] for one in runtime["spec"]["supportedModelFormats"]}
    assert model is None or model["modelFormat"]["name"] == "huggingface"
    assert formats == {"huggingface": False, "huggingface-accelerate": True}


def test_the_job_imports_to_the_folder_that_the_example_serves() -> None:
    (job,) = read(MANIFESTS / "jobs" / "import-torchserve.yaml")
    (pod,) = pods.pods([job])
    assert pod_security.violations(pod) == []
    (container,) = pod["containers"]
    command, flags = parse_arguments(container["args"])
    assert command == "import-torchserve"
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "models")
    (claim,) = (v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "models")
    written = Path(flags["into"]).relative_to(mount["mountPath"])
    _, serving = pods.serving(read(MANIFESTS / "examples" / "torchserve-model.yaml"))
    (uri,) = (name["value"] for name in serving["env"] if name["name"] == "STORAGE_URI")
    assert uri == f"pvc://{claim['claimName']}/{written}"


def test_the_runtime_of_the_cluster_is_the_namespaces() -> None:
    (of_namespace,) = read(MANIFESTS / "serving-runtime.yaml")
    (of_cluster,) = read(MANIFESTS / "cluster" / "cluster-serving-runtime.yaml")
    assert of_cluster == {**of_namespace, "kind": "ClusterServingRuntime"}


def test_the_pod_may_read_pods_and_claims_and_nothing_else() -> None:
    (role,) = read(MANIFESTS / "role.yaml")
    resources = ["pods", "persistentvolumeclaims"]
    assert role["rules"] == [{"apiGroups": [""], "resources": resources, "verbs": ["get"]}]


@pytest.mark.parametrize("folder", [MANIFESTS, MANIFESTS / "cluster"], ids=["base", "cluster"])
def test_a_kustomization_builds_what_lies_beside_it(folder: Path) -> None:
    beside = [obj for file in FILES if file.parent == folder for obj in read(file)]
    assert sorted(kustomize(folder), key=str) == sorted(beside, key=str)


def test_kustomize_sets_the_runtimes_image(tmp_path: Path) -> None:
    for file in MANIFESTS.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    with (tmp_path / "kustomization.yaml").open("a") as kustomization:
        kustomization.write("images: [{name: accelerate-predictor, newName: example.com/own}]\n")
    (runtime,) = (o for o in kustomize(tmp_path) if o["kind"] == "ServingRuntime")
    assert runtime["spec"]["containers"][0]["image"].startswith("example.com/own:")


def test_the_demo_model_lies_where_the_image_has_it() -> None:
    dockerfile = ROOT / "Dockerfile"
    if not dockerfile.exists():
        pytest.skip("there is no Dockerfile in this tree")
    (place,) = re.findall(r"^COPY examples/demo-model (\S+)$", dockerfile.read_text(), re.M)
    _, container = pods.serving(read(MANIFESTS / "examples" / "demo.yaml"))
    assert str(pods.settings(container).model_dir) == place
