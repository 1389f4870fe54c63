"""Bytes of stated assignments, on a model small enough to follow."""

import dataclasses

import pytest

from predictor.placement.buffers import BOUNCE_BUFFER, RESIDENT_READERS, STREAM_PIECE
from predictor.placement.demand import Demand
from predictor.placement.prompt_chunk import _larger_chunks
from predictor.placement.tiers import Budgets, fill_tiers, fits, main_device
from predictor.placement.units import Footprint, PlacementUnit
from tests.placement.small import DEMAND, MIB, budgets, footprint


def in_mib(tier):
    parts = (tier.weights, tier.kv, tier.staging, tier.activations)
    return tuple(part // MIB for part in parts)


def test_kv_of_an_offloaded_block_counts_where_the_block_executes():
    # GPU: 0 + 6 + 8 + block 0; KV of all four blocks, two buffers for modules of 2
    assignment = ("0", "0", "0", "0", "cpu", "cpu", "disk")
    filled = fill_tiers(DEMAND, assignment, budgets(100, cpu=100))

    assert in_mib(filled["0"]) == (24, 16, 4, 3)
    assert in_mib(filled["cpu"]) == (20, 0, 4, 0)  # and modules on their way from the disk
    assert in_mib(filled["disk"]) == (10, 0, 0, 0)
    assert [filled[name].units for name in ("0", "cpu", "disk")] == [4, 2, 1]


def test_blocks_are_streamed_to_a_gpu_whole_through_two_buffers():
    demand = Demand(dataclasses.replace(footprint(), by_block=True), 1)
    # GPU: norm, embeddings, head and a block. Buffers of 10 MiB and 64 KiB.
    filled = fill_tiers(demand, ("0", "0", "0", "0", "cpu", "cpu", "disk"), budgets(100, cpu=100))
    buffer = 10 * MIB + 64 * 1024

    assert in_mib(filled["0"]) == (24, 16, 20, 3)
    assert filled["0"].staging == filled["cpu"].staging == 2 * buffer

    waiting = fill_tiers(demand, ("0", "0", "0", "0", "cpu", "cpu", "cpu"), budgets(100, cpu=100))

    assert waiting["0"].staging == 2 * buffer
    assert waiting["cpu"].staging == 0
    needs_cast = Demand(dataclasses.replace(demand.footprint, needs_cast=True), 1)
    cast = fill_tiers(needs_cast, ("0", "0", "0", "0", "cpu", "cpu", "cpu"), budgets(100, cpu=100))
    assert cast["cpu"].staging == buffer  # from where transformers has cast it

    head = fill_tiers(demand, ("0", "0", "disk", "0", "0", "0", "0"), budgets(100, cpu=100))

    assert head["0"].staging == 8 * MIB  # no block: one buffer
    assert head["cpu"].staging == 2 * head["0"].staging  # pieces on their way


def test_large_blocks_on_their_way_to_a_gpu_pass_main_memory_in_pieces():
    demand = Demand(dataclasses.replace(footprint(block=1000), by_block=True), 1)
    filled = fill_tiers(demand, ("0", "0", "0", "0", "0", "cpu", "disk"), budgets(9000, cpu=9000))

    assert filled["cpu"].staging == 8 * STREAM_PIECE
    assert filled["0"].staging == 2 * (1000 * MIB + 64 * 1024)


def test_large_blocks_on_their_way_to_the_processor_pass_two_bounce_buffers():
    demand = Demand(dataclasses.replace(footprint(block=100), by_block=True), 1)
    filled = fill_tiers(demand, ("cpu",) * 6 + ("disk",), budgets(cpu=9000))

    assert filled["cpu"].staging == 2 * (100 * MIB + 64 * 1024) + 2 * BOUNCE_BUFFER


def test_loading_holds_a_whole_block_before_others_wait_in_its_place():
    block = 1000 * MIB + 64 * 1024  # to write the offload store
    demand = Demand(dataclasses.replace(footprint(block=1000), by_block=True), 1)
    none_waits = fill_tiers(demand, ("0", "0", "0", "0", "0", "0", "disk"), budgets(9000, cpu=9000))
    assert none_waits["cpu"].staging == block

    needs_cast = Demand(dataclasses.replace(demand.footprint, needs_cast=True), 1)
    one_waits = fill_tiers(
        needs_cast, ("0", "0", "0", "0", "0", "cpu", "disk"), budgets(9000, cpu=9000)
    )
    assert one_waits["cpu"].staging == block  # what waits is in memory by then


def test_tensors_that_are_cast_take_a_buffer_for_blocks_one_for_parts_and_some_for_what_stays():
    plain = Demand(dataclasses.replace(footprint(), by_block=True), 1)
    cast = Demand(dataclasses.replace(plain.footprint, needs_cast=True), 1)
    for assignment, buffers in (
        (("cpu",) * 6 + ("disk",), 1 + RESIDENT_READERS),
        (("cpu", "disk", "disk", *("disk",) * 4), 2),
        (("cpu",) * 7, RESIDENT_READERS),
    ):
        staged = [
            fill_tiers(each, assignment, budgets(cpu=100))["cpu"].staging for each in (plain, cast)
        ]
        assert staged[1] - staged[0] == buffers * BOUNCE_BUFFER


def test_a_part_outside_of_blocks_has_a_buffer_of_its_own():
    demand = Demand(dataclasses.replace(footprint(), by_block=True), 1)
    filled = fill_tiers(demand, ("cpu", "cpu", "disk", *("disk",) * 4), budgets(cpu=100))

    assert filled["cpu"].staging == 2 * (10 * MIB + 64 * 1024) + 8 * MIB


def test_what_modules_around_a_part_read_stays_where_the_part_executes():
    units = footprint().units
    embeddings = dataclasses.replace(units[1], weights=0, largest_module=0, fixed=6 * MIB)
    model = dataclasses.replace(footprint(), units=(units[0], embeddings, *units[2:]))
    assert model.weights == footprint().weights
    for where in ("cpu", "0"):
        assignment = (where, "disk", *("disk",) * 5)
        filled = fill_tiers(Demand(model, 1), assignment, budgets(100, cpu=100))
        main = filled[main_device(assignment)]
        assert (filled["disk"].weights // MIB, main.weights // MIB) == (48, 6)


def test_without_a_gpu_in_use_main_memory_executes_and_holds_the_cache():
    assignment = ("cpu",) * 5 + ("disk",) * 2
    filled = fill_tiers(DEMAND, assignment, budgets(100, cpu=100))

    assert in_mib(filled["0"]) == (0, 0, 0, 0)
    assert in_mib(filled["cpu"]) == (34, 16, 4, 3)


def test_each_gpu_holds_the_cache_and_the_activations_of_its_own_blocks():
    assignment = ("0",) * 4 + ("1",) * 3
    filled = fill_tiers(DEMAND, assignment, budgets(100, 100))

    assert in_mib(filled["0"]) == (24, 4, 0, 3)
    assert in_mib(filled["1"]) == (30, 12, 0, 3)


def test_what_is_offloaded_executes_on_the_first_gpu_in_use():
    assignment = ("1", "1", "1", "2", "2", "cpu", "cpu")
    filled = fill_tiers(DEMAND, assignment, budgets(100, 100, 100, cpu=100))

    assert main_device(assignment) == "1"
    assert in_mib(filled["1"]) == (14, 8, 4, 3)
    assert in_mib(filled["2"]) == (20, 8, 0, 3)


def test_gpus_are_ordered_by_number_not_by_text():
    assert main_device(("10", "9", "cpu")) == "9"


def test_computed_buffers_stay_where_the_unit_executes():
    rotary = PlacementUnit(("rotary",), None, 0, 2 * MIB, 0)
    model = Footprint("Small", "float32", (rotary,), 4, 0, False, False, True)
    block = PlacementUnit(("block",), 0, MIB, 0, MIB)
    model = Footprint("Small", "float32", (rotary, block), 4, 0, False, False, True)
    filled = fill_tiers(Demand(model, 1), ("cpu", "0"), budgets(9, cpu=9))

    assert in_mib(filled["0"])[0] == 1 + 2
    assert in_mib(filled["cpu"])[0] == 0


def test_concurrency_multiplies_the_cache_alone():
    one, three = (
        fill_tiers(Demand(footprint(), n), ("cpu",) * 7, budgets(cpu=99))["cpu"] for n in (1, 3)
    )

    assert in_mib(one) == (54, 16, 0, 3)
    assert in_mib(three) == (54, 48, 0, 3)


def test_a_fixed_cache_is_counted_for_each_sequence_whatever_its_length():
    unit = PlacementUnit(("block",), 0, MIB, 0, MIB, kv_per_token=MIB, kv_fixed=5 * MIB)
    model = Footprint("Small", "float32", (unit,), 4, 0, False, False, True)

    assert Demand(model, 2).kv_bytes(unit) == 2 * (5 + 4) * MIB


@pytest.mark.parametrize(
    ("concurrency", "slots", "tokens"),
    [
        (1, 1, 3 + 2),  # a window, and a chunk for new tokens
        (1, 4, 4 * 3 + 2),
        (1, 16, 20),  # no more than is cached
        (5, 4, 5 * 3 + 2),
    ],
)
def test_windows_are_counted_for_each_sequence_but_never_more_than_whole_ones(
    concurrency, slots, tokens
):
    unit = PlacementUnit(("block",), 0, MIB, 0, MIB, kv_per_token=MIB, kv_windowed=7 * MIB)
    model = Footprint(
        *("Small", "float32", (unit,), 20, 0, False, False, True), window=3, prefill_chunk=2
    )

    demand = Demand(model, concurrency, slots)
    assert demand.window_tokens == tokens
    assert demand.kv_bytes(unit) == (20 * concurrency + 7 * tokens) * MIB


def test_a_plan_fits_up_to_the_last_byte():
    filled = fill_tiers(DEMAND, ("cpu",) * 7, budgets(cpu=73))["cpu"]
    assert filled.planned == (54 + 16 + 3) * MIB

    assert fits(DEMAND, ("cpu",) * 7, budgets(cpu=73))
    assert not fits(DEMAND, ("cpu",) * 7, Budgets({}, 73 * MIB - 1, None))


def test_a_model_without_prompts_has_no_larger_chunks():
    assert [*_larger_chunks(footprint())] == []
    chunked = dataclasses.replace(footprint(), prefill_chunk=64, largest_chunk=512)
    assert [*_larger_chunks(chunked)] == [512, 256, 128]
