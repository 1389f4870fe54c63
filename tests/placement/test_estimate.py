"""Estimated rates, worked out by hand."""

from dataclasses import replace

import pytest

from predictor.placement.estimate import (
    GB,
    Bandwidths,
    bytes_by_resource,
    estimate_rates,
    full_length_sequences,
)
from predictor.placement.plan import ExpertSlots, PlacementOptions
from predictor.placement.planner import plan
from tests.placement.small import MIB, footprint, pod

SLOW_DISK = Bandwidths(disk=10 * MIB, link=100 * MIB, memory=50 * MIB, gpu=1000 * MIB)


def placed(*gpus, memory, **options):
    return plan(footprint(), pod(*gpus, memory=memory), PlacementOptions(headroom=0, **options))


# GPU 34 MiB of weights, main memory 10, disk 10: see the first test of `test_planner`
OVER_THREE_TIERS = placed(57, memory=14)


def test_offloaded_weights_go_through_disk_link_and_gpu_memory():
    assert bytes_by_resource(OVER_THREE_TIERS, 1) == {
        "disk": 10 * MIB,
        "link": 20 * MIB,
        "gpu": 54 * MIB,
    }


def test_a_processor_reads_every_weight_from_main_memory_and_copies_none():
    # 54 MiB of weights, of which those of one block do not stay
    placement = placed(memory=67)
    on_disk = placement.tier("disk").weights

    assert on_disk == 10 * MIB
    assert bytes_by_resource(placement, 1) == {"disk": on_disk, "memory": 54 * MIB}


def test_the_slowest_resource_decides():
    # disk 10/10 = 1 s, link 20/100 = 0.2 s, GPU 54/1000 s
    single = estimate_rates(OVER_THREE_TIERS, SLOW_DISK, 64).single

    assert (single.seconds, single.limited_by) == (1.0, "disk")
    assert single.tokens_per_second == 1.0
    fast_disk = replace(SLOW_DISK, disk=1000 * MIB)
    assert estimate_rates(OVER_THREE_TIERS, fast_disk, 64).single.limited_by == "link"


def test_with_one_buffer_reading_does_not_overlap_computing():
    # the same numbers: disk and link overlap, and 1 s of reading comes before 54 ms of computing
    placement = replace(OVER_THREE_TIERS, stream_buffers=1)
    single = estimate_rates(placement, SLOW_DISK, 64).single
    assert (single.seconds, single.limited_by) == (pytest.approx(1.054), "disk")

    # a processor: 1 s of reading, and 54/50 s of computing, which takes longer
    on_processor = replace(placed(memory=67), stream_buffers=1)
    single = estimate_rates(on_processor, SLOW_DISK, 64).single
    assert (single.seconds, single.limited_by) == (pytest.approx(2.08), "memory")


def test_a_full_batch_shares_one_pass():
    placement = replace(OVER_THREE_TIERS, kv_tokens=12)  # three sequences of 4 tokens

    full = estimate_rates(placement, SLOW_DISK, 64).full

    assert (full.rows, full.seconds, full.tokens_per_second) == (3, 1.0, 3.0)
    assert estimate_rates(placement, SLOW_DISK, 2).full.rows == 2


def test_the_arithmetic_of_a_large_batch_takes_longer_than_reading_the_weights():
    # 54 MiB of main memory at 50 MiB/s, twice for 32 rows; the disk takes 1 s
    placement = replace(placed(memory=67), kv_tokens=4 * 32)

    full = estimate_rates(placement, SLOW_DISK, 64).full

    assert (full.rows, full.seconds, full.limited_by) == (32, pytest.approx(2.16), "memory")


def test_of_an_encoder_forward_passes_are_counted():
    estimate = estimate_rates(OVER_THREE_TIERS, SLOW_DISK, 64, is_encoder=True)

    assert (estimate.unit, estimate.single, estimate.full.rows) == ("passes/s", estimate.full, 1)


@pytest.mark.parametrize(
    ("kv_tokens", "state_slots", "sequences"), [(12, 0, 3), (0, 5, 5), (12, 2, 2), (0, 0, 1)]
)
def test_the_batch_is_as_large_as_the_cache_and_the_states_allow(kv_tokens, state_slots, sequences):
    placement = replace(OVER_THREE_TIERS, kv_tokens=kv_tokens, state_slots=state_slots)

    assert full_length_sequences(placement) == sequences


def test_of_experts_the_different_ones_of_a_batch_are_read_that_are_not_in_memory():
    # all 8 experts of 4 MiB are on disk, 2 of them have a slot on the GPU and 2 in main memory
    layer = ExpertSlots("blocks.0.experts", 8, 2, 4 * MIB, 2, 2)
    disk = replace(OVER_THREE_TIERS.tier("disk"), weights=(10 + 32) * MIB)
    tiers = (*OVER_THREE_TIERS.tiers[:2], disk)
    placement = replace(OVER_THREE_TIERS, tiers=tiers, experts=(layer,))

    # one token: 2 experts, a half of them from disk and three quarters over the link
    assert bytes_by_resource(placement, 1) == {
        "disk": (10 + 4) * MIB,
        "link": (20 + 6) * MIB,
        "gpu": (54 + 8) * MIB,
    }
    # two tokens: 8 x (1 - 0.75^2) = 3.5 different experts
    assert bytes_by_resource(placement, 2)["gpu"] == (54 + 14) * MIB


def test_json_says_that_it_is_an_estimate_and_where_each_bandwidth_is_from():
    speeds = Bandwidths(disk=2 * GB, sources={"disk": "measured"})

    numbers = estimate_rates(OVER_THREE_TIERS, speeds, 1).as_json()

    assert numbers["is_estimate"] is True
    assert numbers["bandwidths"]["disk"] == {"bytes_per_second": 2 * GB, "source": "measured"}
    assert numbers["bandwidths"]["link"]["source"] == "assumed"
