"""Bytes of stated assignments, and the search, on a model small enough to follow."""

import dataclasses

import pytest

from predictor.placement.assignment import Budgets, fits, main_device, search, tiers
from predictor.placement.demand import Demand
from predictor.placement.units import STAGE, STREAM_PIECE, Footprint, PlacementUnit
from tests.placement.small import MIB, footprint


def budgets(*gpus, cpu=0, disk=None):
    return Budgets({str(i): size * MIB for i, size in enumerate(gpus)}, cpu * MIB, disk)


def in_mib(tier):
    parts = (tier.weights, tier.kv, tier.staging, tier.activations)
    return tuple(part // MIB for part in parts)


def split(assignment):
    """How many units each device has, in order: the assignments of these tests are runs."""
    counts = {}
    for device in assignment:
        counts[device] = counts.get(device, 0) + 1
    return counts


DEMAND = Demand(footprint(), 1)  # norm 0, embeddings 6, head 8, four blocks of 10 with 4 of KV


def test_kv_of_an_offloaded_block_counts_where_the_block_executes():
    # GPU: 0 + 6 + 8 + block 0; KV of all four blocks, the largest leaf of what is streamed: 4
    assignment = ("0", "0", "0", "0", "cpu", "cpu", "disk")
    found = tiers(DEMAND, assignment, budgets(100, cpu=100))

    assert in_mib(found["0"]) == (24, 16, 4, 3)
    assert in_mib(found["cpu"]) == (20, 0, 4, 0)  # and a leaf on its way from the disk
    assert in_mib(found["disk"]) == (10, 0, 0, 0)
    assert [found[name].units for name in ("0", "cpu", "disk")] == [4, 2, 1]


def test_blocks_are_streamed_to_a_gpu_whole_through_two_buffers():
    demand = Demand(dataclasses.replace(footprint(), by_block=True), 1)
    # GPU: norm, embeddings, head and a block. Buffers of 10 MiB and 64 KiB, and no leaf besides.
    found = tiers(demand, ("0", "0", "0", "0", "cpu", "cpu", "disk"), budgets(100, cpu=100))
    buffer = 10 * MIB + 64 * 1024

    assert in_mib(found["0"]) == (24, 16, 20, 3)
    assert found["0"].staging == found["cpu"].staging == 2 * buffer

    waiting = tiers(demand, ("0", "0", "0", "0", "cpu", "cpu", "cpu"), budgets(100, cpu=100))

    assert waiting["0"].staging == 2 * buffer
    assert waiting["cpu"].staging == 0
    needs_cast = Demand(dataclasses.replace(demand.footprint, needs_cast=True), 1)
    moved = tiers(needs_cast, ("0", "0", "0", "0", "cpu", "cpu", "cpu"), budgets(100, cpu=100))
    assert moved["cpu"].staging == buffer  # from where transformers has cast it

    head = tiers(demand, ("0", "0", "disk", "0", "0", "0", "0"), budgets(100, cpu=100))

    assert in_mib(head["0"])[2] == in_mib(head["cpu"])[2] == 8  # no block: its largest leaf


def test_large_blocks_on_their_way_to_a_gpu_pass_main_memory_in_pieces():
    demand = Demand(dataclasses.replace(footprint(block=1000), by_block=True), 1)
    found = tiers(demand, ("0", "0", "0", "0", "0", "cpu", "disk"), budgets(9000, cpu=9000))

    assert found["cpu"].staging == 8 * STREAM_PIECE
    assert found["0"].staging == 2 * (1000 * MIB + 64 * 1024)


def test_large_blocks_on_their_way_to_the_processor_pass_two_stages():
    demand = Demand(dataclasses.replace(footprint(block=100), by_block=True), 1)
    found = tiers(demand, ("cpu",) * 6 + ("disk",), budgets(cpu=9000))

    assert found["cpu"].staging == 2 * (100 * MIB + 64 * 1024) + 2 * STAGE


def test_loading_holds_a_whole_block_before_others_wait_in_its_place():
    block = 1000 * MIB + 64 * 1024  # to write the offload store
    demand = Demand(dataclasses.replace(footprint(block=1000), by_block=True), 1)
    none_waits = tiers(demand, ("0", "0", "0", "0", "0", "0", "disk"), budgets(9000, cpu=9000))
    assert none_waits["cpu"].staging == block

    needs_cast = Demand(dataclasses.replace(demand.footprint, needs_cast=True), 1)
    one_waits = tiers(needs_cast, ("0", "0", "0", "0", "0", "cpu", "disk"), budgets(9000, cpu=9000))
    assert one_waits["cpu"].staging == block  # what waits is in memory by then


def test_accelerate_converts_a_leaf_module_on_the_gpu():
    demand = Demand(footprint(needs_cast=True), 1)
    found = tiers(demand, ("0", "0", "0", "0", "cpu", "cpu", "disk"), budgets(100, cpu=100))

    assert in_mib(found["0"])[2] == 3 * 4


def test_without_a_gpu_in_use_main_memory_executes_and_holds_the_cache():
    assignment = ("cpu",) * 5 + ("disk",) * 2
    found = tiers(DEMAND, assignment, budgets(100, cpu=100))

    assert in_mib(found["0"]) == (0, 0, 0, 0)
    assert in_mib(found["cpu"]) == (34, 16, 4, 3)


def test_each_gpu_holds_the_cache_and_the_activations_of_its_own_blocks():
    assignment = ("0",) * 4 + ("1",) * 3
    found = tiers(DEMAND, assignment, budgets(100, 100))

    assert in_mib(found["0"]) == (24, 4, 0, 3)
    assert in_mib(found["1"]) == (30, 12, 0, 3)


def test_what_is_offloaded_executes_on_the_first_gpu_in_use():
    assignment = ("1", "1", "1", "2", "2", "cpu", "cpu")
    found = tiers(DEMAND, assignment, budgets(100, 100, 100, cpu=100))

    assert main_device(assignment) == "1"
    assert in_mib(found["1"]) == (14, 8, 4, 3)
    assert in_mib(found["2"]) == (20, 8, 0, 3)


def test_gpus_are_ordered_by_number_not_by_text():
    assert main_device(("10", "9", "cpu")) == "9"


def test_computed_buffers_stay_where_the_unit_executes():
    rotary = PlacementUnit(("rotary",), None, 0, 2 * MIB, 0)
    model = Footprint("Small", "float32", (rotary,), 4, 0, False, False, True)
    block = PlacementUnit(("block",), 0, MIB, 0, MIB)
    model = Footprint("Small", "float32", (rotary, block), 4, 0, False, False, True)
    found = tiers(Demand(model, 1), ("cpu", "0"), budgets(9, cpu=9))

    assert in_mib(found["0"])[0] == 1 + 2
    assert in_mib(found["cpu"])[0] == 0


def test_a_streamed_tensor_is_held_twice_while_it_is_cast():
    demand = Demand(footprint(needs_cast=True), 1)
    found = tiers(demand, ("cpu",) * 6 + ("disk",), budgets(cpu=100))

    assert in_mib(found["cpu"])[2] == 2 * 4


def test_concurrency_multiplies_the_cache_alone():
    one, three = (
        tiers(Demand(footprint(), n), ("cpu",) * 7, budgets(cpu=99))["cpu"] for n in (1, 3)
    )

    assert in_mib(one) == (54, 16, 0, 3)
    assert in_mib(three) == (54, 48, 0, 3)


def test_a_fixed_cache_is_counted_for_each_sequence_whatever_its_length():
    unit = PlacementUnit(("block",), 0, MIB, 0, MIB, kv_per_token=MIB, kv_fixed=5 * MIB)
    model = Footprint("Small", "float32", (unit,), 4, 0, False, False, True)

    assert Demand(model, 2).kv(unit) == 2 * (5 + 4) * MIB


def test_a_plan_fits_up_to_the_last_byte():
    found = tiers(DEMAND, ("cpu",) * 7, budgets(cpu=73))["cpu"]
    assert found.planned == (54 + 16 + 3) * MIB

    assert fits({"cpu": found})
    assert not fits(tiers(DEMAND, ("cpu",) * 7, Budgets({}, 73 * MIB - 1, None)))


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
        # the head is streamed as well: 3 + 16 + 8 = 27, and 6 for the embeddings
        (36, 8, {"0": 2, "disk": 5}),
        (33, 18, {"0": 2, "cpu": 1, "disk": 4}),
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
