"""The objects that the chart renders from values."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

import predictor
from predictor import metrics
from predictor.derived_metrics import DerivedMetrics
from tests.deploy import objects, pod_security, pods
from tests.deploy.cases import CASES, JOBS, STORIES
from tests.deploy.helm import CHART, MANIFESTS, Object, helm, read, render

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
TEMPLATES = {file.name: file.read_text() for file in sorted(CHART.glob("templates/**/*.*"))}

every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def rendered(case: str) -> list[Object]:
    return render(CASES[case])


def of_kind(kind: str, made: list[Object]) -> list[Object]:
    return [obj for obj in made if obj["kind"] == kind]


def one(kind: str, values: dict[str, Any]) -> Object:
    (obj,) = of_kind(kind, render(values))
    return obj


def without_labels(made: list[Object]) -> dict[tuple[str, str], Object]:
    bare = {}
    for obj in made:
        metadata = {key: value for key, value in obj["metadata"].items() if key != "labels"}
        bare[obj["kind"], metadata["name"]] = {**obj, "metadata": metadata}
    return bare


def rename(obj: Object, name: str) -> Object:
    """Return a Role or the binding of a Role under another name, along with its reference."""
    role = {"roleRef": {**obj["roleRef"], "name": name}} if "roleRef" in obj else {}
    return {**obj, "metadata": {**obj["metadata"], "name": name}, **role}


@pytest.mark.parametrize("story", STORIES)
def test_the_chart_renders_an_examples_values_as_in_the_manifests(story: str) -> None:
    """Objects that manifests/ has once for a namespace are renamed for the release.

    The annotation that keeps a claim after its release is only Helm's, so it is left out.
    """
    values = json.loads(json.dumps(STORIES[story]))
    values.setdefault("offload", {}).setdefault("persistence", {})["retain"] = False
    runtime = values.setdefault("kserve", {}).setdefault("runtime", {})
    if runtime.get("create", True):
        runtime |= {"name": "accelerate-predictor", "autoSelect": True}
    values["serviceAccount"] = {"name": "accelerate-predictor"}

    made = without_labels(render(values, release=story))
    del made["Pod", f"{story}-ask"]

    base = [o for file in MANIFESTS.glob("*.yaml") for o in read(file) if "metadata" in o]
    expected = without_labels([*base, *read(MANIFESTS / "examples" / f"{story}.yaml")])
    for kind in ("Role", "RoleBinding"):  # a release's own, whosever account it is for
        expected[kind, story] = rename(expected.pop((kind, "accelerate-predictor")), story)
    if "containers" in expected["InferenceService", story]["spec"]["predictor"]:
        del expected["ServingRuntime", "accelerate-predictor"]
    assert made == expected


def test_every_example_is_in_the_chart_and_in_the_manifests() -> None:
    assert {file.stem for file in (MANIFESTS / "examples").glob("*.yaml")} == STORIES.keys()


@every_case
def test_every_object_is_one_that_the_api_server_takes(case: str) -> None:
    faults = {f"{o['kind']} {o['metadata']['name']}": objects.faults(o) for o in rendered(case)}
    assert {name: some for name, some in faults.items() if some} == {}


@every_case
def test_every_pod_is_restricted(case: str) -> None:
    assert [pod_security.violations(pod) for pod in pods.pods(rendered(case))] == [[], []]


@every_case
def test_flags_and_environment_are_settings_that_fit_the_pod(case: str) -> None:
    pod, container = pods.serving(rendered(case))
    settings = pods.settings(container)
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert container["ports"][0]["containerPort"] == settings.http_port
    assert [p["containerPort"] for p in container["ports"][1:]] in ([settings.grpc_port], [])
    assert settings.offload_folder is None or not mounts[str(settings.offload_folder)].get(
        "readOnly"
    )
    assert {mount["name"] for mount in mounts.values()} == {v["name"] for v in pod["volumes"]}
    if "lifecycle" in container:
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > sleep + settings.grace_period


def test_settings_reach_the_predictor_as_they_were_written() -> None:
    _, container = pods.serving(rendered("everything under KServe"))
    settings = pods.settings(container)
    assert (settings.dtype, settings.max_body_size, settings.memory_headroom) == (
        "bfloat16",
        1048576,
        0.1,
    )
    assert (settings.verify_store, settings.grace_period) == (True, 59.5)
    assert settings.device_map == {"transformer.h.0": "0"}
    assert (settings.model_name, settings.model_id, settings.model_revision) == (
        "known",
        "org/model",
        "v1",
    )
    assert settings.max_batch_size == 8


@pytest.mark.parametrize(
    ("values", "requests", "limits"),
    [
        (
            {"accelerators": {"nvidia.com/gpu": 2}, "resources": {"limits": {"memory": "8Gi"}}},
            {"cpu": "1", "memory": "8Gi", "nvidia.com/gpu": 2},
            {"cpu": "1", "memory": "8Gi", "nvidia.com/gpu": 2},
        ),
        (
            {"kserve": {"enabled": False}},
            {"cpu": "1", "memory": "2Gi"},
            {"memory": "2Gi"},
        ),
    ],
)
def test_resources_are_whole_and_leave_nothing_for_kserve_to_fill_in(
    values: dict[str, Any], requests: Object, limits: Object
) -> None:
    _, container = pods.serving(render(values))
    assert container["resources"] == {"requests": requests, "limits": limits}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, "Recreate"),
        ({"accelerators": {"nvidia.com/gpu": 1}, "offload": {"enabled": False}}, "Recreate"),
        ({"offload": {"enabled": False}}, "RollingUpdate"),
        ({"offload": {"ephemeral": {"enabled": True}}}, "RollingUpdate"),
        ({"offload": {"persistence": {"accessModes": ["ReadWriteMany"]}}}, "RollingUpdate"),
        ({"strategy": "RollingUpdate"}, "RollingUpdate"),
    ],
)
def test_an_update_waits_for_the_old_pod_if_both_need_the_same(
    values: dict[str, Any], kind: str
) -> None:
    predictor = one("InferenceService", values)["spec"]["predictor"]
    deployment = one("Deployment", {**values, "kserve": {"enabled": False}})["spec"]
    assert predictor["deploymentStrategy"]["type"] == kind
    assert deployment["strategy"] == predictor["deploymentStrategy"]


def test_a_claim_of_another_is_mounted_without_kserve_as_kserve_does() -> None:
    pod, container = pods.serving(rendered("everything without KServe"))
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "model")
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "model")
    assert (mount["mountPath"], mount["subPath"]) == ("/mnt/models", "family/model")
    assert mount["readOnly"] is True


def test_labels_that_change_with_a_version_are_not_on_kserves_pods() -> None:
    labels = one("InferenceService", {})["metadata"]["labels"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & labels.keys()


def test_selectors_find_the_predictors_pods_and_not_the_tests() -> None:
    made = rendered("everything without KServe")
    (deployment,) = of_kind("Deployment", made)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (test,) = of_kind("Pod", made)
    (service,) = of_kind("Service", made)
    wanted = service["spec"]["selector"].items()
    assert wanted <= labels.items()
    assert not wanted <= test["metadata"]["labels"].items()
    for kind in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor"):
        (obj,) = of_kind(kind, made)
        selector = obj["spec"].get("podSelector") or obj["spec"]["selector"]
        assert selector["matchLabels"].items() == wanted


@pytest.mark.parametrize(
    ("sets", "has_tls"),
    [
        ({"settings": {"ssl_certfile": "/tls/tls.crt", "ssl_keyfile": "/tls/tls.key"}}, True),
        ({"extraArgs": ["--ssl-certfile=/tls/tls.crt", "--ssl-keyfile=/tls/tls.key"]}, True),
        ({"extraEnv": [{"name": "PREDICTOR_SSL_CERTFILE", "value": "/tls/tls.crt"}]}, True),
        ({"extraEnv": [{"name": "KSERVE_TLS_CERT_FILE", "value": "/tls/tls.crt"}]}, True),
        ({"extraEnv": [{"name": "SSL_CERT_FILE", "value": "/etc/ssl/ca.pem"}]}, False),
        ({}, False),
    ],
)
def test_everything_that_calls_a_predictor_with_tls_has_tls(
    sets: dict[str, Any], has_tls: bool
) -> None:
    values: dict[str, Any] = {"kserve": {"enabled": False}, "podMonitor": {"enabled": True}, **sets}
    made = render(values)
    (deployment,), (pod,), (monitor,) = (
        of_kind(kind, made) for kind in ("Deployment", "Pod", "PodMonitor")
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"].get("scheme") == ("HTTPS" if has_tls else None)
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint.get("scheme") == ("https" if has_tls else None)
    url = pod["spec"]["containers"][0]["command"][3]
    assert url.startswith("https://" if has_tls else "http://")
    (created,) = of_kind("ServingRuntime", render(sets))
    probe = created["spec"]["containers"][0]["readinessProbe"]
    assert probe["httpGet"].get("scheme") == ("HTTPS" if has_tls else None)


@pytest.mark.parametrize(
    ("draft", "fetches"), [("org/small", True), ("/mnt/models/small", False), (None, False)]
)
def test_a_draft_model_on_the_hub_has_the_token_and_a_folder_for_its_files(
    draft: str | None, fetches: bool
) -> None:
    values = {
        "kserve": {"enabled": False},
        "model": {"uri": "pvc://models/one"},
        "hubToken": {"value": "secret"},
        "settings": {"draft_model_dir": draft} if draft else None,
    }
    (container,) = one("Deployment", values)["spec"]["template"]["spec"]["containers"]
    names = {variable["name"] for variable in container["env"]}
    assert {"HF_TOKEN", "HF_HOME"} & names == ({"HF_TOKEN", "HF_HOME"} if fetches else set())


def test_a_token_is_in_a_secret_and_nowhere_else() -> None:
    made = rendered("everything under KServe")
    (secret,) = of_kind("Secret", made)
    assert secret["stringData"] == {"HF_TOKEN": "secret"}
    assert [o["kind"] for o in made if '"secret"' in json.dumps(o)] == ["Secret"]


def test_helm_keeps_the_claim_unless_retain_is_false() -> None:
    (kept,) = of_kind("PersistentVolumeClaim", render({}))
    (deleted,) = of_kind("PersistentVolumeClaim", rendered("a model of the hub without KServe"))
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "helm.sh/resource-policy" not in deleted["metadata"]["annotations"]


@pytest.mark.parametrize("metric", ["waiting", "queueSeconds"])
def test_keda_gets_the_same_query_from_the_chart_and_from_kserve(metric: str) -> None:
    of = '{namespace="default",model_name="known"}'
    queries = {
        "waiting": f"sum(predictor_sequences_waiting{of})",
        "queueSeconds": f"sum(predictor_sequences_waiting{of}) / "
        f"clamp_min(sum(rate(predictor_queue_seconds_count{of}[5m])), 1/60) * "
        f"count(predictor_ready{of})",
    }
    values = {
        "model": {"name": "known"},
        "offload": {"enabled": False},
        "autoscaling": {"enabled": True, "metric": metric},
    }
    scaled = one("ScaledObject", {**values, "kserve": {"enabled": False}})
    (scaling,) = one("InferenceService", values)["spec"]["predictor"]["autoScaling"]["metrics"]
    assert scaled["spec"]["triggers"][0]["metadata"]["query"] == queries[metric]
    assert scaling["external"]["metric"]["query"] == queries[metric]


@pytest.mark.parametrize(("kserve", "deployment"), [(True, "demo-predictor"), (False, "demo")])
def test_an_hpa_scales_the_deployment_and_kserve_leaves_it_alone(
    kserve: bool, deployment: str
) -> None:
    made = render(
        {
            "autoscaling": {"enabled": True, "by": "hpa", "maxReplicas": 5},
            "offload": {"enabled": False},
            "kserve": {"enabled": kserve},
        }
    )
    (hpa,) = of_kind("HorizontalPodAutoscaler", made)
    assert hpa["spec"]["scaleTargetRef"]["name"] == deployment
    assert of_kind("ScaledObject", made) == []
    for service in of_kind("InferenceService", made):
        annotations = service["metadata"]["annotations"]
        assert annotations["serving.kserve.io/autoscalerClass"] == "external"
        assert "autoScaling" not in service["spec"]["predictor"]
        assert service["spec"]["predictor"]["maxReplicas"] == 5


def test_metrics_in_the_chart_are_the_predictors() -> None:
    drawn = [one["expr"] for panel in panels() for one in panel.get("targets", ())]
    queried = set(re.findall(r"\b(predictor_\w+)\{", "".join([*TEMPLATES.values(), *drawn])))
    made = (m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase))
    families = [next(iter(metric.describe())) for metric in made]
    families += DerivedMetrics(vllm=False).collect()
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    assert queried
    assert queried <= {f.name + ending for f in families for ending in endings[f.type]}


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that the chart renders."""
    (obj,) = of_kind("ConfigMap", rendered("everything under KServe"))
    drawn: list[dict[str, Any]] = json.loads(obj["data"]["accelerate-predictor.json"])["panels"]
    return drawn


def test_the_dashboard_has_the_labels_that_grafanas_sidecar_looks_for() -> None:
    (obj,) = of_kind("ConfigMap", rendered("everything under KServe"))
    assert obj["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert obj["metadata"]["annotations"] == {"grafana_folder": "Models"}
    assert obj["metadata"]["namespace"] == "monitoring"
    assert of_kind("ConfigMap", render({})) == []


def test_no_panel_covers_another() -> None:
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels()
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))


def test_the_linter_reports_nothing() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_packages() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == predictor.__version__
    manifests = "".join(file.read_text() for file in MANIFESTS.rglob("*.yaml"))
    assert {*re.findall(r"image: \S+:(\S+)", manifests)} == {predictor.__version__}


def _conditions() -> Iterator[tuple[str, str, bool]]:
    """Yield each value in a template's condition: condition, path, whether it is compared."""
    for text in TEMPLATES.values():
        for condition in re.findall(r"\{\{-? (?:else )?(?:if|with) (.*?)-?\}\}", text):
            compared = re.search(r"\b(eq|ne|gt|lt|has|hasPrefix|contains)\b", condition)
            for path in re.findall(r"\.Values\.([\w.]+)", condition):
                yield condition, path, compared is not None


def _values_of(path: str) -> list[Any]:
    taken = []
    for values in (*CASES.values(), *JOBS.values()):
        given: Any = values
        default: Any = DEFAULTS
        for step in path.split("."):
            default = default[step]
            given = given.get(step) if isinstance(given, dict) else None
        taken.append(default if given is None else given)
    return taken


def test_the_cases_make_every_condition_both_true_and_false() -> None:
    one_way = set()
    for condition, path, compared in _conditions():
        values = _values_of(path)
        ways = {json.dumps(value) if compared else bool(value) for value in values}
        if len(ways) < 2:
            one_way.add((path, condition))
    assert one_way == set()
    assert len(list(_conditions())) > 40


def test_text_that_looks_like_a_number_stays_text() -> None:
    values = {
        "fullnameOverride": "demo",
        "kserve": {"enabled": False},
        "model": {"uri": "pvc://models/2024", "name": "123"},
        "priorityClassName": "1",
        "accelerators": None,
        "settings": None,
    }
    made = render(values, release="42")
    assert [objects.faults(obj) for obj in made] == [[] for _ in made]
    _, container = pods.serving(made)
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "model")
    assert mount["subPath"] == "2024"
