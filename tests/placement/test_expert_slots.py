"""Plans of mixtures whose experts are read one by one, on a model small enough to follow.

Dense: norm 0, embeddings 6, head 8, four blocks of 10: 54 MiB; KV 16, activations 3. Each block has
eight experts of 4 MiB, 128 MiB together, of which a token uses two. Staging: 32 MiB are eight slots
of 4; and four readers have a bounce buffer of 1 MiB each in main memory.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.errors import DoesNotFit
from predictor.placement.plan import ExpertSlots, PlacementOptions
from predictor.placement.planner import plan
from predictor.placement.report import as_json, describe_experts, table
from predictor.placement.units import Experts, Footprint, PlacementUnit
from predictor.pod.resources import Accelerator, Memory, PodResources
from tests.placement.small import MIB, footprint, pod

SLOTS = PlacementOptions(headroom=0, expert_slots=True)
MIXTURE = footprint(experts=8)


def slots(placement):
    return [layer.device_slots for layer in placement.experts]


def host_slots(placement):
    return [layer.host_slots for layer in placement.experts]


# Main memory: 54 dense + 16 KV + 3 + 32 staging + 4 bounce buffers = 109


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (109, [0, 0, 0, 0]),
        (112, [0, 0, 0, 0]),
        (113, [1, 0, 0, 0]),
        (125, [1, 1, 1, 1]),
        (188, [5, 5, 5, 4]),  # 79 MiB are 19 slots
    ],
)
def test_slots_are_the_memory_that_dense_parts_and_staging_leave_evenly(memory, expected):
    placement = plan(MIXTURE, pod(memory=memory), SLOTS)

    assert slots(placement) == expected
    assert host_slots(placement) == [0, 0, 0, 0]
    assert set(placement.device_map.values()) == {"cpu"}
    cpu, disk = placement.tier("cpu"), placement.tier("disk")
    assert (cpu.weights, cpu.staging) == (54 * MIB, 36 * MIB)
    assert cpu.experts == sum(expected) * 4 * MIB
    assert cpu.planned == 109 * MIB + cpu.experts
    assert (disk.units, disk.weights) == (0, 128 * MIB)


# A GPU without a dense part: 3 activations + 16 KV + 32 staging + 8 for the head = 59


@pytest.mark.parametrize(
    ("gpu", "by_block", "buffers"),
    [(59 + 21, True, 2), (59 + 4, False, 2), (59 + 2, False, 1)],
)
def test_dense_parts_are_streamed_by_module_where_two_whole_ones_do_not_fit(gpu, by_block, buffers):
    placement = plan(MIXTURE, pod(gpu, memory=200), SLOTS)

    assert placement.execution_device == 0
    assert len(placement.experts) == 4
    assert (placement.by_block, placement.stream_buffers) == (by_block, buffers)


def test_each_layer_is_described_in_execution_order():
    placement = plan(MIXTURE, pod(memory=113), SLOTS)

    assert placement.experts == (
        ExpertSlots("blocks.0.experts", 8, 2, 4 * MIB, 1, 0),
        *(ExpertSlots(f"blocks.{index}.experts", 8, 2, 4 * MIB, 0, 0) for index in (1, 2, 3)),
    )
    assert (placement.expert_staging, placement.host_expert_staging) == (8, 0)
    assert placement.by_block


def test_if_every_expert_fits_the_plan_is_that_of_whole_blocks():
    # 54 + 128 + 16 + 3 = 201
    placement = plan(MIXTURE, pod(memory=201), SLOTS)

    assert placement == plan(MIXTURE, pod(memory=201), PlacementOptions(headroom=0))
    assert placement.experts == ()
    assert (placement.expert_staging, placement.tier("disk").weights) == (0, 0)


def test_no_expert_stays_where_a_dense_part_does_not():
    # a block less, and two buffers of 10 MiB and 64 KiB: 109 - 3 * 10 + 20.125 = 99.125
    placement = plan(MIXTURE, pod(memory=108), SLOTS)

    assert list(placement.device_map.values()).count("disk") == 3
    assert slots(placement) == [0, 0, 0, 0]
    assert placement.tier("disk").weights == (30 + 128) * MIB


def test_staging_is_two_slots_of_large_experts():
    # 54 + 16 + 3 + 2 * 40 + 4 = 157; 4 * 8 * 40 = 1280
    placement = plan(footprint(experts=8, expert=40), pod(memory=157 + 41), SLOTS)

    assert placement.expert_staging == 2
    assert slots(placement) == [1, 0, 0, 0]
    assert placement.tier("cpu").staging == (2 * 40 + 4) * MIB


# A GPU: 54 dense + 16 KV + 3 + 32 staging = 105; main memory: 32 staging + 4 bounce buffers = 36


@pytest.mark.parametrize(
    ("gpu", "memory", "on_gpu", "in_memory"),
    [
        (150, 88, [3, 3, 3, 2], [4, 3, 3, 3]),  # 45 and 52 MiB
        (105, 36, [0, 0, 0, 0], [0, 0, 0, 0]),
        (150, 500, [3, 3, 3, 2], [8, 8, 8, 8]),
    ],
)
def test_experts_stay_on_the_gpu_then_in_main_memory(gpu, memory, on_gpu, in_memory):
    placement = plan(MIXTURE, pod(gpu, memory=memory), SLOTS)

    assert slots(placement) == on_gpu
    assert host_slots(placement) == in_memory
    assert (placement.expert_staging, placement.host_expert_staging) == (8, 8)
    assert (placement.tier("0").staging, placement.tier("cpu").staging) == (32 * MIB, 36 * MIB)
    assert placement.tier("0").experts == sum(on_gpu) * 4 * MIB
    assert placement.tier("cpu").experts == sum(in_memory) * 4 * MIB
    assert placement.tier("disk").weights == 128 * MIB


def test_dense_parts_that_wait_for_the_gpu_leave_it_no_slots():
    # 104: two blocks stay; 105 - 2 * 10 + 20.125 = 105.125 is too much, three less fit
    placement = plan(MIXTURE, pod(104, memory=200), SLOTS)

    assert list(placement.device_map.values()).count("cpu") == 3
    assert slots(placement) == [0, 0, 0, 0]
    assert sum(host_slots(placement)) > 0


def test_further_gpus_hold_whole_blocks():
    # GPU 1: 3 activations, and two blocks of 10 + 32 with 4 of KV are 95. GPU 0: 3 + 14 + two
    # dense parts of 10 with 4 of KV + 32 staging = 77, so 23 MiB are 5 slots.
    placement = plan(MIXTURE, pod(100, 100, memory=88), SLOTS)

    assert placement.execution_device == 0
    assert placement.device_map["blocks.1"] == 0
    assert placement.device_map["blocks.2"] == placement.device_map["blocks.3"] == 1
    assert [layer.module for layer in placement.experts] == ["blocks.0.experts", "blocks.1.experts"]
    assert slots(placement) == [3, 2]
    assert host_slots(placement) == [7, 6]  # 52 MiB
    assert placement.tier("1").planned == 95 * MIB
    assert placement.tier("disk").weights == 64 * MIB


def test_a_gpu_that_cannot_stage_experts_is_left_to_the_processor():
    placement = plan(MIXTURE, pod(30, memory=138), SLOTS)

    assert placement.execution_device == "cpu"
    assert slots(placement) == [2, 2, 2, 1]  # 29 MiB


def test_without_the_option_or_with_an_explicit_map_blocks_stay_whole():
    whole = plan(MIXTURE, pod(memory=200), PlacementOptions(headroom=0))
    explicit = plan(MIXTURE, pod(memory=200), dataclasses.replace(SLOTS, device_map="disk"))

    assert whole.experts == explicit.experts == ()
    # 201 - 3 * 42 + 2 * (42 + 1/16) + 16 of bounce buffers = 175.125
    assert whole.tier("disk").weights == 3 * 42 * MIB
    assert set(explicit.device_map.values()) == {"disk"}


def test_a_model_whose_blocks_cannot_be_streamed_whole_has_no_slots():
    by_module = dataclasses.replace(MIXTURE, by_block=False)

    assert plan(by_module, pod(memory=200), SLOTS).experts == ()


def test_experts_that_have_no_room_on_the_disk_stay_in_their_blocks():
    options = dataclasses.replace(SLOTS, disk=127 * MIB)

    assert plan(MIXTURE, pod(memory=200), options).experts == ()
    assert plan(MIXTURE, pod(memory=200), dataclasses.replace(options, disk=128 * MIB)).experts


@pytest.mark.parametrize(
    ("memory", "sequences", "expected"),
    [
        (176, 6, 14),  # 19 slots, 8 of them the floor: half of the other 11 give way
        (129, 1, 8),
        (125, 1, 7),
    ],
)
def test_half_of_the_slots_beyond_a_floor_give_way_to_more_sequences(memory, sequences, expected):
    # 54 dense + 4 KV + 3 + 36 = 97; a sequence takes 4 MiB, as much as a slot. The floor is twice
    # the one expert that a token uses, in each of four layers.
    model = footprint(experts=8, routed=1, max_model_len=1)
    options = dataclasses.replace(SLOTS, max_concurrency=None, max_batch_size=64)

    placement = plan(model, pod(memory=memory), options)

    assert placement.kv_tokens == sequences
    assert sum(slots(placement)) == expected


def test_a_refusal_says_that_no_expert_stays():
    with pytest.raises(DoesNotFit) as caught:
        plan(MIXTURE, pod(memory=40), SLOTS)

    sentence = str(caught.value)
    assert "does not fit, even if none of its experts stays in memory: main memory" in sentence
    # 3 + 16, one module of 2, the head's 8, and 36 of slots and bounce buffers
    assert "(needs 65.00 MiB, can use 40.00 MiB)" in sentence


def test_experts_that_cannot_be_read_one_by_one_are_noted_if_blocks_are_offloaded():
    model = dataclasses.replace(footprint(block=42), by_block=True, whole_mixtures=4)

    assert plan(model, pod(memory=300), SLOTS).notes == ()
    assert plan(model, pod(memory=200), SLOTS).notes == (
        "The experts of 4 blocks cannot be read one by one (they do not use transformers' experts "
        "interface, or are in a .bin checkpoint), so these blocks are streamed whole, with all of "
        "their experts.",
    )


# In words


def test_experts_are_described_in_words():
    on_gpu = plan(MIXTURE, pod(150, memory=500), SLOTS)
    equal = plan(MIXTURE, pod(memory=125), SLOTS)

    assert describe_experts(plan(MIXTURE, pod(memory=188), SLOTS)) == (
        "8 experts in each of 4 layers, 2 used; 4 or 5 of 8 stay in main memory"
    )
    assert describe_experts(equal) == (
        "8 experts in each of 4 layers, 2 used; 1 of 8 stay in main memory"
    )
    assert describe_experts(on_gpu) == (
        "8 experts in each of 4 layers, 2 used; 2 or 3 of 8 stay on GPU 0, 8 of 8 in main memory"
    )


def test_the_limit_counts_experts_that_stay_nowhere():
    on_gpu = plan(MIXTURE, pod(150, memory=500), SLOTS)

    # 32 experts less 19 are 52 of 182 MiB; 32 less 11 are 84
    assert plan(MIXTURE, pod(memory=188), SLOTS).limited_by == (
        "main memory: 52.00 MiB (29 %) are streamed from disk"
    )
    assert on_gpu.limited_by == "GPU memory: 84.00 MiB (46 %) are streamed from main memory"


def test_the_table_has_a_column_and_a_line_for_experts():
    lines = table(plan(MIXTURE, pod(memory=188), SLOTS)).splitlines()

    assert lines[1].split()[-6:] == ["activ.", "experts", "planned", "can", "use", "full"]
    assert "76.00 MiB" in lines[3]
    assert lines[6] == (
        "experts: 8 experts in each of 4 layers, 2 used; 4 or 5 of 8 stay in main memory"
    )


def test_json_has_the_slots_of_each_layer():
    report = as_json(plan(MIXTURE, pod(memory=188), SLOTS))

    assert report["experts"][0] == {
        "module": "blocks.0.experts",
        "count": 8,
        "routed": 2,
        "size": 4 * MIB,
        "device_slots": 5,
        "host_slots": 0,
    }
    assert (report["expert_staging"], report["host_expert_staging"]) == (8, 0)
    assert report["tiers"][0]["experts"] == 76 * MIB


# What holds of every plan with experts. The buffers of readers are 4 MiB, those of dense blocks
# two of 64 KiB and the block.


@st.composite
def mixtures(draw):
    units = [PlacementUnit(("head",), None, draw(st.integers(0, 6)), 0, 1)]
    for index in range(draw(st.integers(1, 4))):
        dense, count = draw(st.integers(0, 9)), draw(st.integers(0, 5))
        size = draw(st.integers(1, 4))
        experts = Experts(f"b{index}.experts", count, min(2, count), size, count * size)
        weights = dense + count * size
        units.append(
            PlacementUnit(
                (f"b{index}",), index, weights, 0, weights, 1, experts=experts if count else None
            )
        )
    return Footprint("Made", "float32", tuple(units), 2, 3, False, False, True, 1, True)


AMOUNTS = st.sampled_from([0, 4 * MIB, 4 * MIB + 128 * 1024]).flatmap(
    lambda base: st.integers(base, base + 60)
)
GPUS = st.sampled_from([0, 128 * 1024]).flatmap(lambda base: st.integers(base, base + 60))


def made_pod(gpus, memory):
    accelerators = (Accelerator(i, "cuda", "made", size, size) for i, size in enumerate(gpus))
    return PodResources(tuple(accelerators), Memory(None, memory, "made"), None)


def attempt(model, gpus, memory):
    try:
        return plan(model, made_pod(gpus, memory), SLOTS)
    except DoesNotFit:
        return None


@settings(max_examples=300)
@given(mixtures(), st.lists(GPUS, max_size=2), AMOUNTS)
def test_a_plan_with_slots_is_never_over_a_budget_and_counts_every_byte(model, gpus, memory):
    placement = attempt(model, gpus, memory)
    if placement is None:
        return

    for tier in placement.tiers:
        assert tier.budget is None or tier.planned <= tier.budget
    assert placement.weights == model.weights
    for layer in placement.experts:
        assert 0 <= layer.device_slots <= layer.count
        assert 0 <= layer.host_slots <= layer.count
    if placement.experts and slots(placement):
        assert max(slots(placement)) == 0 or not placement.offloaded


@settings(max_examples=400)
@given(mixtures(), st.lists(GPUS, max_size=2), AMOUNTS, st.integers(1, 40), st.integers(0, 2))
def test_more_memory_never_takes_a_slot(model, gpus, memory, more, which):
    before = attempt(model, gpus, memory)
    if before is None or not before.experts:
        return
    larger = [size + more * (which == index) for index, size in enumerate(gpus)]
    after = attempt(model, larger, memory + more * (which == 2))

    assert after is not None
    if after.execution_device != before.execution_device or not after.experts:
        return
    more_slots = {layer.module: layer for layer in after.experts}
    for layer in before.experts:
        if layer.module in more_slots:  # else its block is whole on a further GPU now
            assert layer.device_slots <= more_slots[layer.module].device_slots
            assert layer.host_slots <= more_slots[layer.module].host_slots
