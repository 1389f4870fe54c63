"""The objects that the cluster tests apply, checked without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import forked
from tests.cluster import objects
from tests.cluster.kubectl import Object
from tests.deploy.helm import kustomize, render
from tests.deploy.objects import faults
from tests.deploy.pod_security import violations

IMAGE = "registry:5000/predictor:1.2.3"


def test_the_base_is_kustomizes_except_for_the_image() -> None:
    made = objects.base("accelerate-predictor:0.1.0")

    assert sorted(made, key=str) == sorted(kustomize(objects.MANIFESTS), key=str)
    (runtime,) = (each for each in objects.base(IMAGE) if each["kind"] == "ServingRuntime")
    assert runtime["spec"]["containers"][0]["image"] == IMAGE


@pytest.mark.parametrize(
    "objs",
    [
        objects.base(IMAGE),
        objects.demo("demo", offload_store="always"),
        objects.demo("named"),
        objects.replicas(objects.demo("pair"), 2),
        [
            objects.load("load", IMAGE, "demo-predictor", "demo", like=objects.base(IMAGE)),
            objects.program("hub", IMAGE, "hub.py", like=objects.base(IMAGE), claim="models"),
            objects.port("hub", 8000),
            objects.claim("models", "1Gi"),
            objects.volume("small", "1Gi", Path("/mnt/small"), "here", "small-offload"),
        ],
    ],
    ids=["base", "demo", "named", "pair", "programs"],
)
def test_the_api_server_accepts_every_object(objs: list[Object]) -> None:
    assert [faults(obj) for obj in objs] == [[] for _ in objs]


def test_a_restricted_namespace_admits_the_load() -> None:
    pod = objects.load("load", IMAGE, "demo-predictor", "demo", like=objects.base(IMAGE))

    assert violations(pod["spec"]) == []


@pytest.mark.parametrize("name", sorted(p.stem for p in (objects.MANIFESTS / "examples").iterdir()))
def test_an_example_requests_little_and_all_its_gpus(name: str) -> None:
    made = objects.example(name, IMAGE, HF_ENDPOINT="http://hub")
    predictor = objects.service(made)["spec"]["predictor"]
    container = predictor["containers"][0] if "containers" in predictor else predictor["model"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    gpus = {key: amount for key, amount in limits.items() if "/" in key}

    assert [faults(each) for each in made] == [[] for _ in made]
    assert requests == {**objects.SMALL, **gpus}
    assert {"name": "HF_ENDPOINT", "value": "http://hub"} in container["env"]
    assert container.get("image", IMAGE) == IMAGE


def test_the_program_for_a_pod_may_run_in_a_restricted_namespace() -> None:
    like = objects.base(IMAGE)
    pod = objects.program("maker", IMAGE, "big_model.py", "a", like=like, claim="big")

    assert violations(pod["spec"]) == []
    assert pod["spec"]["containers"][0]["command"][-1] == "a"


def test_a_setting_is_added_to_the_demos_or_replaces_one() -> None:
    service = objects.service(
        objects.demo("unfit", max_memory='{"cpu":"1MiB"}', offload_store="always")
    )
    pairs = [(one["name"], one["value"]) for one in service["spec"]["predictor"]["model"]["env"]]

    assert dict(pairs)["PREDICTOR_MAX_MEMORY"] == '{"cpu":"1MiB"}'
    assert dict(pairs)["PREDICTOR_OFFLOAD_STORE"] == "always"
    assert dict(pairs)["PREDICTOR_OFFLOAD_FOLDER"] == "/offload"
    assert len(dict(pairs)) == len(pairs)


def test_another_demo_has_a_claim_of_its_own() -> None:
    demo = objects.demo("unfit")
    (claim,) = (each for each in demo if each["kind"] == "PersistentVolumeClaim")
    (volume,) = objects.service(demo)["spec"]["predictor"]["volumes"]

    assert objects.service(demo)["metadata"]["name"] == "unfit"
    assert claim["metadata"]["name"] == "unfit-offload"
    assert volume["persistentVolumeClaim"]["claimName"] == "unfit-offload"


def test_the_demo_unfit_does_not_fit() -> None:
    service = objects.service(objects.demo("unfit", max_memory='{"cpu":"1MiB"}'))
    environ = {one["name"]: one["value"] for one in service["spec"]["predictor"]["model"]["env"]}
    flags = [
        f"--{name.removeprefix('PREDICTOR_').lower()}={value}"
        for name, value in environ.items()
        if name != "PREDICTOR_OFFLOAD_FOLDER"
    ]
    done = forked.run(["plan", "examples/demo-model", *flags], cwd=objects.ROOT)

    assert done.returncode == 78
    last = done.stderr.splitlines()[-1].removeprefix("predictor: ")
    assert last.startswith("BloomForCausalLM in bfloat16 does not fit: main memory")


@pytest.mark.parametrize("kserve", [True, False])
def test_the_chart_takes_the_values_and_names_things_as_the_tests_do(kserve: bool) -> None:
    values = objects.chart_values(IMAGE, kserve=kserve, max_model_len=128)
    made = render(values, release="kept")
    named = {(each["kind"], each["metadata"]["name"]): each for each in made}

    assert ("InferenceService" if kserve else "Deployment", "kept") in named
    claim = named["PersistentVolumeClaim", "kept-offload"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert IMAGE in str(made)
    if not kserve:
        labels = named["Deployment", "kept"]["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "kept"
        assert labels["app.kubernetes.io/component"] == "predictor"
