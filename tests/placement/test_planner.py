"""Whole plans: options and resources in, exact maps and refusals out."""

import dataclasses
from dataclasses import replace

import pytest

from predictor.errors import ConfigurationError, DoesNotFit
from predictor.placement.plan import PlacementOptions, Tier
from predictor.placement.planner import plan
from predictor.placement.units import Footprint, PlacementUnit
from predictor.pod.resources import PodResources
from tests.placement.small import MIB, footprint, pod

BARE = {"headroom": 0.0}


def options(**given):
    return PlacementOptions(**(BARE | given))


def test_the_device_map_and_the_tiers_in_exact_numbers():
    # GPU 57: 3 activations + 16 KV + 2 buffers of 2 + 0 + 6 + 8 + 2 blocks of 10
    # main memory 14: a block of 10 and two modules of 2 on their way from disk
    placement = plan(footprint(), pod(57, memory=14), options())

    assert placement.device_map == {
        "norm": 0,
        "embeddings": 0,
        "head": 0,
        "blocks.0": "disk",
        "blocks.1": 0,
        "blocks.2": "cpu",
        "blocks.3": 0,
    }
    assert placement.tiers == (
        Tier("0", 57 * MIB, 57 * MIB, 34 * MIB, 16 * MIB, 4 * MIB, 3 * MIB, units=5),
        Tier("cpu", 14 * MIB, 14 * MIB, 10 * MIB, 0, 4 * MIB, 0, units=1),
        Tier("disk", None, None, 10 * MIB, 0, 0, 0, units=1),
    )
    assert placement.execution_device == 0
    assert placement.kv_tokens == 4
    assert placement.limited_by == "main memory: 10.00 MiB (19 %) are streamed from disk"
    assert placement.notes == ()


def test_a_note_says_if_sizes_come_from_formulas():
    placement = plan(replace(footprint(), probed=False), pod(200), options())

    assert len(placement.notes) == 1
    assert "are estimated by formulas" in placement.notes[0]


def test_embeddings_and_head_are_placed_before_blocks():
    # room for 0 + 6 + 8 beside 23 of KV, staging and activations, and not for one block more
    placement = plan(footprint(), pod(46, memory=40), options())

    assert [name for name, device in placement.device_map.items() if device == 0] == [
        "norm",
        "embeddings",
        "head",
    ]


def test_kv_tokens_are_those_of_the_requested_sequences():
    assert plan(footprint(), pod(memory=200), options(max_concurrency=3)).kv_tokens == 12


def test_headroom_and_reserve_are_never_planned():
    # 5 % of 100 MiB, and 10 MiB of main memory besides
    placement = plan(
        footprint(), pod(100, memory=100), PlacementOptions(headroom=0.05, reserve=10 * MIB)
    )

    assert placement.tier("0").budget == 95 * MIB
    assert placement.tier("0").reserve == 5 * MIB
    assert placement.tier("cpu").budget == 85 * MIB
    assert placement.tier("cpu").reserve == 15 * MIB


def test_a_bounded_disk_is_a_tier_with_a_budget():
    placement = plan(footprint(needs_conversion=True), pod(memory=67), options(disk=11 * MIB))

    assert placement.tier("disk").planned == 10 * MIB
    assert placement.tier("disk").budget == 11 * MIB


def test_a_max_memory_below_what_is_owned_is_kept():
    placement = plan(footprint(), pod(100, memory=100), options(max_memory={"0": 57 * MIB}))

    assert placement.tier("0").budget == 57 * MIB
    assert placement.tier("0").units == 5
    assert placement.tier("0").reserve == 43 * MIB
    assert placement.notes == ()


def test_a_max_memory_above_what_is_owned_is_cut_with_a_note_that_names_both():
    placement = plan(
        footprint(), pod(100), PlacementOptions(max_memory={"0": 2048 * MIB, "cpu": MIB})
    )

    assert placement.tier("0").budget == 95 * MIB
    assert placement.notes == (
        "max_memory asks for 2.00 GiB on GPU 0, but this pod can use 95.00 MiB there, "
        "and no more is planned.",
        "max_memory asks for 1.00 MiB on main memory, but this pod can use 0 B there, "
        "and no more is planned.",
    )


@pytest.mark.parametrize(
    ("gpus", "seen"), [((), "no GPU"), ((10,), "1 GPU(s)"), ((10, 10), "2 GPU(s)")]
)
def test_max_memory_cannot_name_a_gpu_that_is_not_there(gpus, seen):
    with pytest.raises(ConfigurationError, match="max_memory names GPU 2") as raised:
        plan(footprint(), pod(*gpus, memory=99), options(max_memory={"2": MIB}))

    assert seen in str(raised.value)


def test_an_unknown_device_in_max_memory_is_refused():
    with pytest.raises(ConfigurationError, match="max_memory names 'ram'; devices are '0', '1'"):
        plan(footprint(), pod(memory=99), options(max_memory={"ram": MIB}))


@pytest.mark.parametrize("device_map", ["cpu", "disk", "0", "cuda:0", "cuda"])
def test_one_device_takes_everything(device_map):
    expected = {"cpu": "cpu", "disk": "disk"}.get(device_map, 0)
    placement = plan(footprint(), pod(99, memory=99), options(device_map=device_map))

    assert set(placement.device_map.values()) == {expected}


def test_an_explicit_map_is_followed_and_its_longest_key_wins():
    device_map = {"": "cuda:0", "blocks": "cpu", "blocks.3": "disk"}
    placement = plan(footprint(), pod(99, memory=99), options(device_map=device_map))

    assert placement.device_map == {
        "norm": 0,
        "embeddings": 0,
        "head": 0,
        "blocks.0": "cpu",
        "blocks.1": "cpu",
        "blocks.2": "cpu",
        "blocks.3": "disk",
    }


@pytest.mark.parametrize(
    ("device_map", "sentence"),
    [
        ({"": "0", "block": "cpu"}, "device_map names 'block', which is no module of Small"),
        ({"": "0", "blocks.0.mlp": "cpu"}, "blocks are placed whole"),
        ({"blocks": "cpu"}, "device_map leaves 'norm' out"),
        ({"": "3"}, r"device_map names GPU 3, but this pod sees 1 GPU\(s\)"),
        ("cuda:1", r"device_map names GPU 1, but this pod sees 1 GPU\(s\)"),
        ("balancd", "no strategy and no device; did you mean 'balanced'?"),
        ({"": "tpu"}, "device_map names 'tpu', which is no strategy and no device"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(device_map, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        plan(footprint(), pod(99, memory=99), options(device_map=device_map))


def test_tied_parts_cannot_be_put_apart():
    tied = PlacementUnit(("embeddings", "head"), None, MIB, 0, MIB)
    model = Footprint("Small", "float32", (tied,), 4, 0, False, False, True)
    device_map = {"embeddings": "0", "head": "cpu"}

    with pytest.raises(ConfigurationError, match="embeddings and head on different devices"):
        plan(model, pod(9, memory=9), options(device_map=device_map))


def test_tied_parts_go_together():
    tied = PlacementUnit(("embeddings", "head"), None, MIB, 0, MIB)
    model = Footprint("Small", "float32", (tied,), 4, 0, False, False, True)

    assert plan(model, pod(9), options()).device_map == {"embeddings": 0, "head": 0}


@pytest.mark.parametrize(
    ("resources", "given", "expected"),
    [
        (pod(99), {}, "nothing: every weight is where it executes"),
        (pod(memory=99), {}, "nothing: every weight is where it executes"),
        (pod(46, memory=99), {}, "GPU memory: 40.00 MiB (74 %) are streamed from main memory"),
        (pod(memory=67), {}, "main memory: 10.00 MiB (19 %) are streamed from disk"),
        (
            pod(9, memory=99),
            {},
            "GPUs that hold no part: the processor executes the whole model",
        ),
        (
            pod(99, memory=99),
            {"device_map": "cpu"},
            "GPUs that hold no part: the processor executes the whole model",
        ),
    ],
)
def test_the_placement_names_the_resource_that_limits_it(resources: PodResources, given, expected):
    assert plan(footprint(), resources, options(**given)).limited_by == expected


def test_where_nothing_fits_the_plan_is_refused():
    with pytest.raises(DoesNotFit):
        plan(footprint(), pod(memory=20), options())


# Blocks that are streamed whole


def by_block(**given):
    return dataclasses.replace(footprint(**given), by_block=True)


def buffers(size):
    """Two of blocks of so many MiB, each with its slack of 64 KiB."""
    return 2 * (size * MIB + 64 * 1024)


def test_windows_of_one_sequence_at_a_time_are_planned_without_its_new_tokens():
    units = [dataclasses.replace(u, kv_windowed=u.kv_per_token) for u in footprint().units]
    units = tuple(dataclasses.replace(unit, kv_per_token=0) for unit in units)
    model = dataclasses.replace(
        footprint(), units=units, window=8, prefill_chunk=64, max_model_len=64
    )

    assert plan(model, pod(memory=1000), options()).window_tokens == 64
    assert plan(model.with_own_caches(), pod(memory=1000), options()).window_tokens == 8


def test_streaming_whole_blocks_takes_two_buffers():
    # 3 activations + 24 KV + 6 + 8 + 2 blocks of 10, and the buffers
    placement = plan(by_block(blocks=6), pod(memory=3 + 24 + 14 + 20 + 21), options())

    cpu = placement.tier("cpu")
    assert (cpu.staging, cpu.weights) == (buffers(10), 34 * MIB)
    assert placement.by_block
    assert [placement.device_map[f"blocks.{index}"] for index in range(6)] == [
        *("disk", "disk", "cpu", "disk", "disk", "cpu")
    ]


def test_where_buffers_for_whole_blocks_do_not_fit_their_modules_are_streamed():
    # 3 activations + 16 KV + two buffers of 2 + 6 + 8
    placement = plan(by_block(), pod(memory=3 + 16 + 4 + 14), options())

    assert placement.tier("cpu").staging == 4 * MIB
    assert not placement.by_block


def test_blocks_are_streamed_to_a_gpu_whole_where_it_has_room_for_two():
    # GPU: 3 activations + 24 KV + two buffers + 14 + a block; main memory: a block, two buffers
    placement = plan(by_block(blocks=6), pod(3 + 24 + 21 + 14 + 10, memory=10 + 21), options())

    assert placement.by_block
    assert placement.execution_device == 0
    assert placement.tier("0").staging == placement.tier("cpu").staging == buffers(10)
    where = [placement.device_map[f"blocks.{index}"] for index in range(6)]
    assert where == ["disk", "disk", "disk", "disk", "cpu", 0]


def test_a_gpu_with_no_room_for_two_blocks_computes_all_the_same():
    # 3 activations + 16 KV + 8 for the head and 4 for modules: no room for two blocks
    placement = plan(by_block(), pod(31, memory=200), options())

    assert not placement.by_block
    assert placement.execution_device == 0


def test_where_two_modules_do_not_fit_each_is_read_after_the_one_before_it():
    # 3 activations + 16 KV + one buffer of 2 + 8 for the head
    placement = plan(by_block(), pod(memory=3 + 16 + 2 + 8), options())

    assert placement.tier("cpu").staging == (2 + 8) * MIB
    assert (placement.by_block, placement.stream_buffers) == (False, 1)
    assert any("read after the one before it" in note for note in placement.notes)
    roomy = plan(by_block(), pod(memory=3 + 16 + 4 + 14), options())
    assert roomy.stream_buffers == 2
    assert not any("read after" in note for note in roomy.notes)


def test_a_gpu_with_room_for_one_module_computes_before_the_processor_does():
    placement = plan(by_block(), pod(3 + 16 + 2 + 8, memory=200), options())

    assert (placement.execution_device, placement.stream_buffers) == (0, 1)


@pytest.mark.parametrize(
    ("blocks", "resident"), [(22, 8), (22, 1), (22, 19), (10, 5), (7, 3), (4, 1)]
)
def test_streamed_blocks_are_spread_evenly_between_those_that_stay(blocks, resident):
    memory = 3 + 4 * blocks + 14 + 10 * resident + 21
    placement = plan(by_block(blocks=blocks), pod(memory=memory), options())
    where = [placement.device_map[f"blocks.{index}"] for index in range(blocks)]

    assert where.count("cpu") == resident
    assert where[-1] == "cpu"
    for length in range(1, blocks):  # in any stretch as many as its share, give or take one
        for start in range(blocks - length):
            share = length * resident / blocks
            assert abs(where[start : start + length].count("cpu") - share) <= 1.5


def test_blocks_are_not_moved_where_that_would_not_fit():
    small, large = 10, 12
    model = by_block(blocks=8)
    units = [
        dataclasses.replace(unit, weights=large * MIB) if unit.block in (0, 2) else unit
        for unit in model.units
    ]
    model = dataclasses.replace(model, units=tuple(units))
    memory = 3 + 32 + 14 + large + small + 25
    where = plan(model, pod(memory=memory), options()).device_map

    assert [where[f"blocks.{index}"] for index in range(8)] == ["cpu"] * 2 + ["disk"] * 6
