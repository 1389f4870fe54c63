from pathlib import Path

import pytest

from predictor.pod.pod_spec import GpuRequest, OffloadMount, OwnPodUnknown, describe
from tests.pod.pods import make_container, make_pod

GIB = 1 << 30
FOLDER = Path("/mnt/offload/blocks")


def test_limits_and_requests_become_bytes():
    container = make_container(
        {"memory": "40Gi", "ephemeral-storage": "10Gi", "cpu": "4"}, requests={"memory": "20Gi"}
    )
    pod = describe(make_pod(container), None, None)
    assert (pod.name, pod.namespace, pod.container) == ("bloom-0", "models", "kserve-container")
    assert pod.memory_limit == 40 * GIB
    assert pod.memory_request == 20 * GIB
    assert pod.ephemeral_storage_limit == 10 * GIB
    assert (pod.gpus, pod.device_claims, pod.offload) == ((), False, None)


def test_a_container_that_says_nothing_has_no_limits():
    pod = describe({**make_pod({"name": "only"})}, None, FOLDER)
    assert (pod.memory_limit, pod.ephemeral_storage_limit, pod.gpus) == (None, None, ())
    assert pod.offload is None


def test_a_limit_of_the_whole_pod_counts_where_the_container_has_none():
    pod = make_pod(make_container({"cpu": "1"}))
    pod["spec"]["resources"] = {"limits": {"memory": "8Gi"}}
    assert describe(pod, None, None).memory_limit == 8 * GIB


@pytest.mark.parametrize(
    ("resource", "kind"),
    [
        ("nvidia.com/gpu", "cuda"),
        ("nvidia.com/gpu.shared", "cuda"),
        ("nvidia.com/mig-3g.20gb", "cuda"),
        ("nvidia.com/mig-1g.10gb.me", "cuda"),
        ("nvidia.com/mig-1g.5gb.shared", "cuda"),
        ("amd.com/gpu", "cuda"),
        ("amd.com/cpx_nps4", "cuda"),
        ("gpu.intel.com/i915", "xpu"),
        ("gpu.intel.com/xe", "xpu"),
        ("habana.ai/gaudi", "hpu"),
    ],
)
def test_every_vendors_devices_are_counted(resource, kind):
    pod = describe(make_pod(make_container({resource: "2"})), None, None)
    assert pod.gpus == (GpuRequest(resource, 2, kind),)


@pytest.mark.parametrize(
    "resource",
    ["gpu.intel.com/i915_monitoring", "gpu.intel.com/memory.max", "nvidia.com/gpumem", "cpu"],
)
def test_resources_that_are_no_devices_are_not(resource):
    assert describe(make_pod(make_container({resource: "2"})), None, None).gpus == ()


def test_asking_for_zero_devices_is_asking_for_none():
    assert describe(make_pod(make_container({"nvidia.com/gpu": "0"})), None, None).gpus == ()


def test_devices_by_resource_claim_are_known_to_be_there():
    container = make_container()
    container["resources"]["claims"] = [{"name": "gpu"}]
    assert describe(make_pod(container), None, None).device_claims


def test_kserves_container_is_this_processs_among_sidecars():
    pod = make_pod(make_container({"memory": "1Gi"}, name="istio"), make_container(name="agent"))
    pod["spec"]["containers"].append(make_container({"memory": "2Gi"}))
    assert describe(pod, None, None).memory_limit == 2 * GIB
    assert describe(pod, "istio", None).memory_limit == GIB


def test_the_only_container_is_this_processs_whatever_its_name():
    assert describe(make_pod(make_container(name="server")), None, None).container == "server"


def test_a_container_name_that_the_pod_lacks_says_what_there_is():
    with pytest.raises(OwnPodUnknown, match=r"no container 'x' \(it has a, b\).*CONTAINER_NAME"):
        describe(make_pod(make_container(name="a"), make_container(name="b")), "x", None)


def test_several_containers_without_a_known_name_ask_for_container_name():
    with pytest.raises(OwnPodUnknown, match=r"containers a, b .*say by CONTAINER_NAME"):
        describe(make_pod(make_container(name="a"), make_container(name="b")), None, None)


def _offload(mounts, **volumes) -> OffloadMount | None:
    return describe(make_pod(make_container(mounts=mounts), **volumes), None, FOLDER).offload


def test_the_volume_of_the_offload_folder_is_the_one_mounted_closest_above_it():
    offload = _offload(
        {"/mnt": "models", "/mnt/offload": "scratch", "/mnt/off": "other"},
        models={"emptyDir": {}},
        scratch={"persistentVolumeClaim": {"claimName": "offload-claim"}},
        other={"emptyDir": {}},
    )
    assert offload == OffloadMount(
        volume="scratch",
        path=Path("/mnt/offload"),
        kind="persistentVolumeClaim",
        claim="offload-claim",
        size=None,
        in_memory=False,
        partial=False,
    )


def test_a_generic_ephemeral_volumes_claim_is_named_after_pod_and_volume():
    offload = _offload({"/mnt/offload/": "scratch"}, scratch={"ephemeral": {"x": {}}})
    assert (offload.kind, offload.claim) == ("ephemeral", "bloom-0-scratch")


def test_an_empty_dir_says_its_size_limit_and_medium():
    empty_dir = {"emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    offload = _offload({"/mnt/offload": "scratch"}, scratch=empty_dir)
    assert (offload.claim, offload.size, offload.in_memory) == (None, 8 * GIB, True)


def test_a_folder_on_no_volume_is_on_the_containers_own_file_system():
    assert _offload({"/mnt/other": "scratch"}, scratch={"emptyDir": {}}) is None


def test_a_volume_mounted_by_sub_path_is_partial():
    container = make_container(mounts={"/mnt/offload": "scratch"})
    container["volumeMounts"][0]["subPathExpr"] = "$(POD_NAME)"
    pod = make_pod(container, scratch={"persistentVolumeClaim": {"claimName": "c"}})
    assert describe(pod, None, FOLDER).offload.partial
