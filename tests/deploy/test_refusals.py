"""The chart's errors for wrong values, and for a cluster that lacks an API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.cases import CASES
from tests.deploy.helm import APIS, CHART, template


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"model": {"uri": "hf://org/model", "id": "org/model"}},
            "model.uri and model.id are both set: give one of them.",
        ),
        (
            {"model": {"revision": "v1"}},
            "model.revision is set without model.id: it is a revision of that repository.",
        ),
        (
            {"model": {"uri": "s3://bucket/model"}, "kserve": {"enabled": False}},
            "model.uri is s3://bucket/model, which KServe downloads: without KServe give "
            "pvc://claim/path, or model.id.",
        ),
        (
            {"replicas": 2},
            "2 replicas cannot share an offload claim of ReadWriteOnce: set "
            "offload.ephemeral.enabled=true, or accessModes to ReadWriteMany.",
        ),
        (
            {"autoscaling": {"enabled": True, "maxReplicas": 3}},
            "3 replicas cannot share an offload claim of ReadWriteOnce: set "
            "offload.ephemeral.enabled=true, or accessModes to ReadWriteMany.",
        ),
        (
            {"autoscaling": {"enabled": True, "minReplicas": 0, "maxReplicas": 1}},
            "autoscaling.minReplicas is 0: a predictor that is not there has no queue to be woken "
            "by, except in Knative mode.",
        ),
        (
            {"autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 1}},
            "autoscaling.minReplicas is above autoscaling.maxReplicas.",
        ),
        (
            {
                "kserve": {"deploymentMode": "Knative"},
                "settings": {"ssl_certfile": "/tls/tls.crt", "ssl_keyfile": "/tls/tls.key"},
            },
            "settings.ssl_certfile is not for Knative mode, whose own proxy in the pod connects to "
            "the predictor without TLS.",
        ),
        (
            {"fullnameOverride": "My_Model"},
            "My_Model is no name for these objects: give a release name, or fullnameOverride, of "
            "at most 48 lower-case letters, digits and dashes that begins with a letter.",
        ),
        (
            {"fullnameOverride": "a" * 49},
            f"{'a' * 49} is no name for these objects: give a release name, or fullnameOverride, "
            "of at most 48 lower-case letters, digits and dashes that begins with a letter.",
        ),
        (
            {"kserve": {"annotations": {"serving.kserve.io/deploymentMode": "Knative"}}},
            "kserve.annotations has serving.kserve.io/deploymentMode: set kserve.deploymentMode "
            "instead.",
        ),
        (
            {"kserve": {"deploymentMode": "Knative"}, "networkPolicy": {"enabled": True}},
            "networkPolicy.enabled is not for Knative mode, whose own proxy in the pod listens at "
            "other ports.",
        ),
        (
            {
                "model": {"uri": "hf://org/model"},
                "hubToken": {"existingSecret": "token"},
                "serviceAccount": {"create": False},
            },
            "hubToken with model.uri needs serviceAccount.create: KServe takes the token from the "
            "service account's secrets.",
        ),
        (
            {
                "model": {"uri": "hf://org/model"},
                "hubToken": {"existingSecret": "token", "key": "secret"},
            },
            "hubToken.key is not HF_TOKEN, the one key that KServe looks for where model.uri is "
            "set.",
        ),
    ],
)
def test_contradictory_values_give_one_sentence(values: dict[str, Any], sentence: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert f": {sentence}\n" in done.stderr


@pytest.mark.parametrize(
    ("values", "missing", "sentence"),
    [
        (
            {},
            "serving.kserve.io/v1beta1",
            "This cluster has no InferenceService (serving.kserve.io/v1beta1): install KServe, or "
            "set kserve.enabled=false for a plain Deployment.",
        ),
        (
            {},
            "serving.kserve.io/v1alpha1",
            "This cluster has no ServingRuntime (serving.kserve.io/v1alpha1): install KServe, or "
            "set kserve.enabled=false for a plain Deployment.",
        ),
        (
            CASES["knative"],
            "serving.knative.dev/v1",
            "This cluster has no Service (serving.knative.dev/v1): install Knative Serving, or set "
            "kserve.deploymentMode=Standard.",
        ),
        (
            CASES["everything under KServe"],
            "keda.sh/v1alpha1",
            "This cluster has no ScaledObject (keda.sh/v1alpha1): install KEDA, or set "
            "autoscaling.enabled=false.",
        ),
        (
            CASES["everything without KServe"],
            "keda.sh/v1alpha1",
            "This cluster has no ScaledObject (keda.sh/v1alpha1): install KEDA, or set "
            "autoscaling.enabled=false.",
        ),
        (
            {"kserve": {"annotations": {"serving.kserve.io/autoscalerClass": "keda"}}},
            "keda.sh/v1alpha1",
            "This cluster has no ScaledObject (keda.sh/v1alpha1): install KEDA, or set another "
            "serving.kserve.io/autoscalerClass in kserve.annotations.",
        ),
        (
            {"podMonitor": {"enabled": True}},
            "monitoring.coreos.com/v1",
            "This cluster has no PodMonitor (monitoring.coreos.com/v1): install the Prometheus "
            "operator, or set podMonitor.enabled=false.",
        ),
        (
            {"prometheusRule": {"enabled": True}, "kserve": {"enabled": False}},
            "monitoring.coreos.com/v1",
            "This cluster has no PrometheusRule (monitoring.coreos.com/v1): install the Prometheus "
            "operator, or set prometheusRule.enabled=false.",
        ),
    ],
)
def test_an_api_that_the_cluster_lacks_is_named(
    values: dict[str, Any], missing: str, sentence: str
) -> None:
    done = template(values, apis=tuple(api for api in APIS if api != missing))
    assert done.returncode != 0
    assert f": {sentence}\n" in done.stderr


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"modle": {}}, "modle"),
        ({"model": {"url": "hf://org/model"}}, "url"),
        ({"offload": {"persistence": {"storageClassName": "fast"}}}, "storageClassName"),
        ({"settings": {"max_model_length": 8192}}, "max_model_length"),
        ({"settings": {"model_dir": "/models"}}, "model_dir"),
        ({"settings": {"max_model_len": "long"}}, "/settings/max_model_len"),
        ({"settings": {"dtype": "int4"}}, "/settings/dtype"),
        ({"accelerators": {"gpu": 1}}, "'gpu' not allowed"),
        ({"accelerators": {"nvidia.com/gpu": 0.5}}, "/accelerators/nvidia.com~1gpu"),
        ({"resources": {"limits": {"memory": "2GB"}}}, "/resources/limits/memory"),
        ({"resources": {"limits": {"memory": ""}}}, "/resources/limits/memory"),
        ({"kserve": {"deploymentMode": "Serverless"}}, "/kserve/deploymentMode"),
        ({"podSecurityContext": {"runAsNonroot": True}}, "runAsNonroot"),
    ],
)
def test_a_mistake_in_values_is_named(values: dict[str, Any], name: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert name in done.stderr


def paths(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each group and of each switch."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from paths(value, (*above, name))
        if isinstance(value, dict | bool):
            yield (*above, name)


DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.mark.parametrize("path", [*paths(DEFAULTS)], ids=".".join)
def test_a_group_or_a_switch_that_is_null_is_named_or_not_needed(path: tuple[str, ...]) -> None:
    values: Any = None
    for name in reversed(path):
        values = {name: values}
    done = template(values)
    assert "nil pointer" not in done.stderr
    assert "wrong type" not in done.stderr
    if done.returncode:
        assert f"missing property '{path[-1]}'" in done.stderr
