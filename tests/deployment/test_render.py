"""The rendered deployment, to the last field."""

from __future__ import annotations

import pytest
import yaml

from predictor.deployment.render import helm_values, inference_service, summary, to_yaml
from tests.crds import faults
from tests.deployment.deployments import (
    GIB,
    OFFLOADED,
    RESIDENT,
    placed,
    requirements_of,
    resources,
)
from tests.placement.small import footprint


def test_the_values_of_a_partly_offloaded_model():
    flags = {"max_model_len": "8192", "dtype": "bfloat16", "max_memory": '{"cpu": "15MiB"}'}

    assert helm_values(requirements_of(OFFLOADED, flags=flags)) == [
        {
            "model": {"uri": "pvc://CLAIM/PATH"},
            "accelerators": {"nvidia.com/gpu": 1},
            "resources": {
                "requests": {"cpu": 4, "memory": "624Mi"},
                "limits": {"memory": "624Mi"},
            },
            "offload": {"enabled": True, "persistence": {"size": "400Gi"}},
            "settings": {
                "max_model_len": 8192,
                "dtype": "bfloat16",
                "max_memory": {"cpu": "15Mi"},
            },
        }
    ]


def test_the_inference_service_of_a_partly_offloaded_model():
    flags = {
        "max_model_len": "8192",
        "max_memory": '{"cpu": "15MiB"}',
        "request_timeout": "90.5",
        "grace_period": "30.5",
    }
    claim, service = inference_service(requirements_of(OFFLOADED, flags=flags, processors=16))

    assert claim == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "bloom-176b-offload"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "400Gi"}},
        },
    }
    amounts = {"cpu": 16, "memory": "624Mi", "nvidia.com/gpu": 1}
    assert service == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "bloom-176b",
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "none",
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "deploymentStrategy": {"type": "Recreate"},
                "timeout": 91,
                "terminationGracePeriodSeconds": 46,
                "serviceAccountName": "accelerate-predictor",
                "automountServiceAccountToken": True,
                "enableServiceLinks": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "seccompProfile": {"type": "RuntimeDefault"},
                    "fsGroup": 1000,
                    "fsGroupChangePolicy": "OnRootMismatch",
                },
                "model": {
                    "modelFormat": {"name": "huggingface"},
                    "runtime": "accelerate-predictor",
                    "protocolVersion": "v2",
                    "storageUri": "pvc://CLAIM/PATH",
                    "args": [
                        "--offload_folder=/offload",
                        "--max_model_len=8192",
                        '--max_memory={"cpu": "15Mi"}',
                        "--grace_period=30.5",
                        "--request_timeout=90.5",
                    ],
                    "resources": {"requests": amounts, "limits": amounts},
                    "volumeMounts": [{"name": "offload", "mountPath": "/offload"}],
                },
                "volumes": [
                    {
                        "name": "offload",
                        "persistentVolumeClaim": {"claimName": "bloom-176b-offload"},
                    }
                ],
            }
        },
    }


def test_a_model_that_needs_no_disk_gets_no_claim():
    requirements = requirements_of(RESIDENT)
    (service,) = inference_service(requirements)

    assert helm_values(requirements)[0]["offload"] == {"enabled": False}
    assert "volumes" not in service["spec"]["predictor"]
    assert not {"args", "volumeMounts"} & set(service["spec"]["predictor"]["model"])


def test_without_a_gpu_none_is_requested():
    requirements = requirements_of(resources(memory=200))

    assert helm_values(requirements)[0]["accelerators"] == {}
    (service,) = inference_service(requirements)
    assert set(service["spec"]["predictor"]["model"]["resources"]["limits"]) == {"cpu", "memory"}


def test_the_cluster_may_have_another_resource_name_for_gpus():
    requirements = requirements_of(RESIDENT, gpu_resource="nvidia.com/mig-3g.20gb")

    assert helm_values(requirements)[0]["accelerators"] == {"nvidia.com/mig-3g.20gb": 2}


def test_a_model_on_the_hub_is_named_and_not_a_uri():
    flags = {"model_id": "bigscience/bloom-7b1", "model_revision": "main", "model_name": "bloom"}
    requirements = requirements_of(RESIDENT, flags=flags)
    _, service = inference_service(requirements)
    model = service["spec"]["predictor"]["model"]

    assert helm_values(requirements)[0]["model"] == {
        "name": "bloom",
        "id": "bigscience/bloom-7b1",
        "revision": "main",
    }
    assert "storageUri" not in model
    assert model["env"] == [{"name": "HF_HOME", "value": "/offload/huggingface"}]
    assert model["args"] == [
        "--model_id=bigscience/bloom-7b1",
        "--model_revision=main",
        "--offload_folder=/offload",
    ]


def test_a_longer_timeout_goes_to_the_gateway_too():
    (values,) = helm_values(requirements_of(RESIDENT, flags={"request_timeout": "1800"}))

    assert values["kserve"] == {"timeout": 1800}
    assert values["settings"] == {"request_timeout": 1800.0}


def test_a_name_that_is_no_resource_name_is_passed_as_a_flag():
    (service,) = inference_service(requirements_of(RESIDENT, flags={"model_name": "Bloom_176B"}))

    assert service["spec"]["predictor"]["model"]["args"] == ["--model_name=Bloom_176B"]


def test_the_yaml_has_the_plans_notes_and_explains_the_placeholder():
    placement = placed(OFFLOADED, max_memory={"cpu": GIB})
    text = to_yaml(summary(placement), helm_values(requirements_of(OFFLOADED)))

    assert text.splitlines()[:4] == [
        "# Small in float32, limited by main memory: 10.00 MiB (19 %) are streamed from disk",
        "# max_memory asks for 1.00 GiB on main memory, but this pod can use 15.20 MiB there, and "
        "no more is planned.",
        "# pvc://CLAIM/PATH: put in the claim and path where the model lies, or its URI",
        "model:",
    ]
    assert [yaml.safe_load(text)] == helm_values(requirements_of(OFFLOADED))


def test_the_yaml_says_how_many_experts_stay():
    placement = placed(resources(memory=188), footprint(experts=8), headroom=0, expert_slots=True)

    assert summary(placement) == [
        "Small in float32, limited by main memory: 52.00 MiB (29 %) are streamed from disk",
        "8 experts in each of 4 layers, 2 used; 4 or 5 of 8 stay in main memory",
    ]


def test_the_yaml_of_several_documents_is_read_as_they_were():
    flags = {"max_memory": '{"0": "1GiB"}', "model_version": "01"}
    documents = inference_service(requirements_of(OFFLOADED, flags=flags))

    assert list(yaml.safe_load_all(to_yaml(summary(placed(OFFLOADED)), documents))) == documents


@pytest.mark.parametrize("pod", [OFFLOADED, RESIDENT], ids=["offloaded", "resident"])
@pytest.mark.parametrize("flags", [{}, {"model_id": "org/x", "dtype": "float16"}])
def test_kserve_knows_and_takes_every_field(pod, flags):
    *_, service = inference_service(requirements_of(pod, flags=flags))

    assert faults(service) == []


def test_a_field_that_kserve_does_not_know_is_a_fault():
    """The check of the test above finds faults."""
    *_, service = inference_service(requirements_of(OFFLOADED))
    service["spec"]["predictor"]["deploymentStrateggy"] = {"type": "Recreate"}
    service["spec"]["predictor"]["timeout"] = "soon"

    assert len(faults(service)) == 2
