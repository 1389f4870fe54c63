"""The table and the JSON of a placement."""

import dataclasses
import json

from predictor.placement.plan import Placement, PlacementOptions, Tier
from predictor.placement.planner import plan
from predictor.placement.report import as_json, table
from tests.placement.small import MIB, footprint, pod

PLACEMENT = plan(
    footprint(),
    pod(60, memory=16),
    PlacementOptions(headroom=0.05, max_memory={"cpu": 20 * MIB}, disk=100 * MIB),
)


def test_the_table_line_by_line():
    # GPU 0: 57 of 60 MiB can be used, and are; main memory: 14 of 15.2
    assert table(PLACEMENT).splitlines() == [
        "Placement of Small in float32",
        "tier   units    weights   KV cache   staging    activ.    planned    can use   full",
        "-----  -----  ---------  ---------  --------  --------  ---------  ---------  -----",
        "GPU 0      5  34.00 MiB  16.00 MiB  4.00 MiB  3.00 MiB  57.00 MiB  57.00 MiB  100 %",
        "cpu        1  10.00 MiB        0 B  4.00 MiB       0 B  14.00 MiB  15.20 MiB   92 %",
        "disk       1  10.00 MiB        0 B       0 B       0 B  10.00 MiB  95.00 MiB   11 %",
        "executes offloaded parts on: GPU 0",
        "KV cache: 4 tokens; longest sequence: 4 tokens",
        "limited by main memory: 10.00 MiB (19 %) are streamed from disk",
        "note: max_memory asks for 20.00 MiB on main memory, but this pod can use 15.20 MiB there, "
        "and no more is planned.",
    ]


def test_a_disk_that_is_read_in_place_has_no_size():
    line = table(plan(footprint(), pod(memory=67), PlacementOptions(headroom=0))).splitlines()[4]

    assert line.split("  ")[-1].strip() == "-"
    assert line.split() == [
        *("disk", "1", "10.00", "MiB", "0", "B", "0", "B", "0", "B", "10.00", "MiB"),
        *("in", "place", "-"),
    ]


def test_windows_and_states_are_beside_the_tokens_that_are_cached_whole():
    placement = dataclasses.replace(PLACEMENT, window=2, window_tokens=3, state_slots=5)

    line = "KV cache: 4 tokens, 3 in windows of 2, states of 5 sequences"
    assert f"{line}; longest sequence: 4 tokens" in table(placement).splitlines()


INTERNAL = {"least_row_tokens", "modules", "fixed", "stream_buffers"}
"""Fields that are of no use outside; a note tells of a single buffer."""


def test_json_holds_every_field_of_the_placement_and_its_tiers():
    report = json.loads(json.dumps(as_json(PLACEMENT)))

    fields = {field.name for field in dataclasses.fields(Placement)}
    assert set(report) == fields - INTERNAL
    for tier in report["tiers"]:
        names = {field.name for field in dataclasses.fields(Tier)}
        assert set(tier) == names | {"planned", "reserve"}


def test_json_is_in_bytes():
    report = as_json(PLACEMENT)

    assert report["device_map"] == PLACEMENT.device_map
    assert report["tiers"][0] == {
        "name": "0",
        "owned": 60 * MIB,
        "budget": 57 * MIB,
        "planned": 57 * MIB,
        "weights": 34 * MIB,
        "kv": 16 * MIB,
        "staging": 4 * MIB,
        "activations": 3 * MIB,
        "reserve": 3 * MIB,
        "units": 5,
        "experts": 0,
    }
    assert report["execution_device"] == 0
    assert report["notes"] == list(PLACEMENT.notes)
