"""The search for an assignment, on a model small enough to follow."""

import pytest

from predictor.placement.assignment import search
from tests.placement.small import DEMAND, MIB, budgets


def split(assignment):
    """How many units each device has, in order: the assignments of these tests are runs."""
    counts = {}
    for device in assignment:
        counts[device] = counts.get(device, 0) + 1
    return counts


@pytest.mark.parametrize(
    ("gpu", "cpu", "expected"),
    [
        (73, 0, {"0": 7}),
        # 3 + 16 KV + 4 staged = 23; then 0 + 6 + 8 = 37 and a block of 10 each
        (72, 10, {"0": 6, "cpu": 1}),
        (57, 20, {"0": 5, "cpu": 2}),
        (57, 14, {"0": 5, "cpu": 1, "disk": 1}),
        (57, 13, {"0": 5, "disk": 2}),
        (57, 4, {"0": 5, "disk": 2}),
        (37, 4, {"0": 3, "disk": 4}),
        # embeddings and head are streamed as well, through a buffer of 8 beside those of blocks
        (36, 18, {"0": 1, "cpu": 2, "disk": 4}),
        (31, 20, {"0": 1, "cpu": 2, "disk": 4}),
    ],
)
def test_units_go_to_the_gpu_then_to_main_memory_then_to_disk(gpu, cpu, expected):
    assert split(search(DEMAND, budgets(gpu, cpu=cpu), "auto")) == expected


@pytest.mark.parametrize(("gpu", "cpu"), [(57, 3), (37, 3), (26, 14)])
def test_nothing_is_found_where_nothing_fits(gpu, cpu):
    assert search(DEMAND, budgets(gpu, cpu=cpu), "auto") is None


def test_a_gpu_that_can_hold_no_part_is_left_out():
    assert split(search(DEMAND, budgets(20, cpu=73), "auto")) == {"cpu": 7}
    assert split(search(DEMAND, budgets(2, 73), "sequential")) == {"1": 7}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        # weights 54 + KV 16, and activations of 3 on each GPU in use
        ("sequential", {"0": 7}),
        # 14 + 14 + 3 = 31 | 14 + 14 + 3 = 31 | 14 + 3 = 17: no lower cap than 31 will do
        ("auto", {"0": 4, "1": 2, "2": 1}),
        ("balanced", {"0": 4, "1": 2, "2": 1}),
        # the last two GPUs could hold all; then what is on GPU 0 is as little as can be
        ("balanced_low_0", {"1": 5, "2": 2}),
    ],
)
def test_several_gpus_share_by_strategy(strategy, expected):
    assert split(search(DEMAND, budgets(100, 100, 100), strategy)) == expected


def test_balanced_low_0_leaves_gpu_0_what_the_others_cannot_hold():
    # GPUs of 45 hold 3 activations and three blocks with their KV; 0, 6, 8 and a block remain
    assert split(search(DEMAND, budgets(45, 45), "balanced_low_0")) == {"0": 4, "1": 3}


def test_more_gpus_hold_what_one_cannot():
    # GPU 0: 3 + 14 + two blocks with their KV = 45; GPU 1: 3 and the other two
    assert split(search(DEMAND, budgets(45, 45), "auto")) == {"0": 5, "1": 2}
    assert split(search(DEMAND, budgets(45, cpu=60), "auto")) == {"0": 3, "cpu": 4}


def test_a_bounded_disk_is_not_overfilled():
    assert search(DEMAND, budgets(cpu=63, disk=9 * MIB), "auto") is None
    assert split(search(DEMAND, budgets(cpu=67, disk=10 * MIB), "auto")) == {"cpu": 6, "disk": 1}
