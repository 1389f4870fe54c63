"""Plain values: what the Pod asks for against what is seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import ConfigurationError
from predictor.pod.compare import bound_memory, check_devices, memory_notes, take_share
from predictor.pod.pod_spec import OwnPod, describe
from predictor.pod.resources import Accelerator, Memory
from tests.pod.pods import make_container, make_pod

GIB = 1 << 30


def _pod(**limits: str) -> OwnPod:
    return describe(
        make_pod(make_container({k.replace("__", "/"): v for k, v in limits.items()})), None, None
    )


def _asking(resource: str, count: int) -> OwnPod:
    return describe(make_pod(make_container({resource: str(count)})), None, None)


def _cards(count: int, *, kind: str = "cuda", free: int = 70 * GIB) -> tuple[Accelerator, ...]:
    return tuple(Accelerator(i, kind, "card", 80 * GIB, free) for i in range(count))


@pytest.mark.parametrize(
    ("resource", "kind"),
    [("nvidia.com/gpu", "cuda"), ("amd.com/gpu", "cuda"), ("gpu.intel.com/xe", "xpu")],
)
def test_devices_as_requested_give_no_note(resource, kind):
    assert check_devices(_cards(2, kind=kind), _asking(resource, 2), None) == ()


def test_a_pod_without_devices_that_sees_none_says_nothing():
    assert check_devices((), _pod(), None) == ()


def test_two_requested_and_one_visible_is_an_error_with_both_and_the_checks():
    with pytest.raises(ConfigurationError) as caught:
        check_devices(_cards(1), _asking("nvidia.com/gpu", 2), None)
    sentence = str(caught.value)
    assert "the Pod asks for 2 nvidia.com/gpu and torch sees 1 device of that kind" in sentence
    assert "check CUDA_VISIBLE_DEVICES" in sentence


def test_devices_of_another_kind_do_not_make_up_for_missing_ones():
    with pytest.raises(ConfigurationError, match=r"2 gpu\.intel\.com/xe and torch sees no devices"):
        check_devices(_cards(2, kind="cuda"), _asking("gpu.intel.com/xe", 2), None)


def test_gaudi_is_refused_with_what_to_ask_for_instead():
    with pytest.raises(ConfigurationError, match=r"1 habana\.ai/gaudi .*ask for one of those"):
        check_devices((), _asking("habana.ai/gaudi", 1), None)


def test_two_mig_slices_of_which_cuda_shows_one_say_why():
    with pytest.raises(ConfigurationError, match="ask for one larger slice"):
        check_devices(_cards(1), _asking("nvidia.com/mig-1g.10gb", 2), None)


def test_no_mig_slice_at_all_is_not_explained_by_cudas_rule():
    with pytest.raises(ConfigurationError, match="check CUDA_VISIBLE_DEVICES"):
        check_devices((), _asking("nvidia.com/mig-1g.10gb", 1), None)


@pytest.mark.parametrize("requested", [0, 1])
def test_more_devices_than_requested_are_used_with_a_note(requested):
    (note,) = check_devices(_cards(2), _asking("nvidia.com/gpu", requested), None)
    assert ("1 nvidia.com/gpu" if requested else "no GPU") in note
    assert "torch sees 2 devices" in note
    assert "others may own them" in note


def test_devices_by_resource_claim_are_not_taken_for_anothers():
    container = make_container()
    container["resources"]["claims"] = [{"name": "gpu"}]
    assert check_devices(_cards(2), describe(make_pod(container), None, None), None) == ()


def test_two_shares_of_one_card_are_a_note_and_so_is_the_unstated_fraction():
    merged, unstated = check_devices(_cards(1), _asking("nvidia.com/gpu.shared", 2), None)
    assert "2 nvidia.com/gpu.shared and torch sees 1 device" in merged
    assert "set gpu_fraction" in unstated


def test_a_stated_fraction_needs_no_note():
    assert check_devices(_cards(1), _asking("nvidia.com/gpu.shared", 1), 0.5) == ()


def test_a_stated_fraction_says_that_plain_gpus_are_shares_too():
    (note,) = check_devices(_cards(1), _asking("nvidia.com/gpu", 2), 0.5)
    assert "shares of one card" in note


def test_a_share_without_any_device_is_an_error():
    with pytest.raises(ConfigurationError, match="torch sees no devices"):
        check_devices((), _asking("nvidia.com/gpu.shared", 1), 0.5)


def test_a_fraction_bounds_what_is_free_by_the_share_of_the_total():
    assert [card.free for card in take_share(_cards(1), 0.5)] == [40 * GIB]
    assert [card.free for card in take_share(_cards(1, free=30 * GIB), 0.5)] == [30 * GIB]
    assert take_share(_cards(2), None) == _cards(2)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ConfigurationError, match="must be above 0 and at most 1"):
        take_share(_cards(1), fraction)


@given(
    fraction=st.floats(0, 1, exclude_min=True),
    total=st.integers(0, 2**40),
    free=st.integers(0, 2**40),
)
def test_a_share_is_never_above_what_is_free_nor_above_its_part(fraction, total, free):
    (card,) = take_share([Accelerator(0, "cuda", "card", total, free)], fraction)
    assert 0 <= card.free <= min(free, total * fraction)
    assert card.total == total


def test_the_pods_memory_limit_holds_where_no_control_group_shows_it():
    memory = Memory(limit=None, available=64 * GIB, source="host")
    bound = bound_memory(memory, _pod(memory="16Gi"), own_anonymous=GIB)
    assert bound == Memory(16 * GIB, 15 * GIB, "the Pod's memory limit")


def test_a_host_with_less_than_the_pods_limit_leaves_stays_the_bound():
    memory = Memory(limit=None, available=4 * GIB, source="host")
    bound = bound_memory(memory, _pod(memory="16Gi"), own_anonymous=GIB)
    assert bound == Memory(16 * GIB, 4 * GIB, "host")


@pytest.mark.parametrize("limits", [{"memory": "16Gi"}, {"memory": "20Gi"}, {}])
def test_a_control_group_at_least_as_tight_as_the_pods_limit_is_the_truth(limits):
    memory = Memory(limit=16 * GIB, available=15 * GIB, source="cgroup v2 memory.max")
    assert bound_memory(memory, _pod(**limits), own_anonymous=8 * GIB) is memory


def test_a_container_without_a_memory_limit_is_noted():
    unlimited = Memory(limit=None, available=64 * GIB, source="host")
    assert "has no memory limit (request: none)" in memory_notes(unlimited, _pod())[0]
    assert memory_notes(Memory(GIB, GIB, "cgroup"), _pod()) == ()
