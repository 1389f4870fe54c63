"""The memory that loading takes of GPUs against the plan, with made-up numbers.

`test_gpu.py` has real ones.
"""

import logging
from dataclasses import replace

import pytest

from predictor import startup
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.weights.audit import compare_gpus, read_gpus, wake_gpus
from tests.placement.small import MIB, footprint, pod
from tests.serving import bring_up


def spread():
    """Two GPUs with a part each, and main memory with the rest."""
    placement = plan(
        footprint(blocks=30), pod(160, 120, memory=1000), PlacementOptions(headroom=0.0)
    )
    assert [bool(placement.tier(name).units) for name in ("0", "1", "cpu")] == [True] * 3
    return placement


def planned(placement, slots):
    """The bytes that a plan expects loading to take of each GPU."""
    main = str(placement.execution_device)
    return {
        name: placement.tier(name).weights + (slots if name == main else 0) for name in ("0", "1")
    }


@pytest.mark.parametrize(
    ("more", "is_logged"),
    [(0, False), (8 * MIB, False), (30 * MIB, True), (-30 * MIB, True)],
)
@pytest.mark.parametrize("gpu", ["0", "1"])
def test_a_gpu_that_contradicts_the_plan_is_logged_with_both_numbers(caplog, gpu, more, is_logged):
    placement, slots = spread(), 20 * MIB
    before = {"0": 5 * MIB, "1": 900 * MIB}
    after = {name: before[name] + size for name, size in planned(placement, slots).items()}
    after[gpu] += more
    with caplog.at_level(logging.WARNING):
        compare_gpus(placement, before=before, after=after, slots=slots)

    expected = planned(placement, slots)[gpu] // MIB
    warning = (
        f"take {expected + more // MIB}.00 MiB of GPU {gpu}, and {expected}.00 MiB were planned"
    )
    assert len(caplog.messages) == is_logged
    assert (warning in caplog.text) is is_logged


def test_memory_that_blocks_are_streamed_through_is_expected_where_they_compute(caplog):
    placement, slots = spread(), 40 * MIB
    without = planned(placement, 0)
    with caplog.at_level(logging.WARNING):
        compare_gpus(placement, before=dict.fromkeys(without, 0), after=without, slots=slots)

    assert len(caplog.messages) == 1
    assert f"of GPU {placement.execution_device}," in caplog.text


def test_a_plan_without_gpus_wakes_none_and_says_nothing(caplog):
    placement = plan(footprint(), pod(memory=1000), PlacementOptions(headroom=0.0))
    with caplog.at_level(logging.WARNING):
        compare_gpus(placement, before={}, after={}, slots=0)

    assert wake_gpus(placement) == read_gpus(placement) == {}
    assert not caplog.messages


def test_a_gpu_that_the_plan_leaves_alone_is_left_alone():
    placement = plan(footprint(), pod(500, 500, memory=1000), PlacementOptions(headroom=0.0))
    unused = tuple(replace(tier, units=0) for tier in placement.tiers)

    assert wake_gpus(replace(placement, tiers=unused, execution_device="cpu")) == {}


def test_what_loading_takes_is_measured_after_gpus_start_and_before_the_first_pass(
    checkpoints, monkeypatch
):
    calls = []

    def note(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: calls.append(name) or function(*a, **k))

    note(startup.audit, "wake_gpus")
    note(startup, "read_own_anonymous")
    note(startup, "load")
    note(startup.audit, "compare_gpus")
    note(startup, "open_engine")
    bring_up(checkpoints("llama"))

    assert calls == [
        "wake_gpus",
        "read_own_anonymous",
        "load",
        "read_own_anonymous",
        "compare_gpus",
        "open_engine",
    ]
