"""A draft model in the plan, in exact numbers."""

from __future__ import annotations

import dataclasses

import pytest

from predictor.errors import DoesNotFit
from predictor.placement.plan import Placement, PlacementOptions
from predictor.placement.planner import plan
from predictor.placement.report import as_json, table
from predictor.placement.units import Footprint
from tests.placement.small import MIB, footprint, pod

WEIGHTS, KV = 5 * MIB, 2 * MIB
"""Of the draft model: embeddings of 1 MiB, a head of 2 and a block of 2; 0.5 MiB of KV a token."""


def beside(**sizes: int) -> Footprint:
    """The small model of 54 MiB of weights and 16 of KV beside a draft model."""
    draft = footprint(blocks=1, block=2, kv=0, embeddings=1, head=2, **sizes)
    units = [dataclasses.replace(unit, kv_per_token=0) for unit in draft.units]
    units[-1] = dataclasses.replace(units[-1], kv_per_token=MIB // 2)
    return footprint().with_draft_model(dataclasses.replace(draft, units=tuple(units)))


def planned(model: Footprint, *gpus: int, memory: int) -> Placement:
    return plan(model, pod(*gpus, memory=memory), PlacementOptions(headroom=0.0))


def test_main_memory_has_the_weights_and_the_cache_of_the_draft_model() -> None:
    alone, both = planned(footprint(), memory=100), planned(beside(), memory=100)
    cpu, without = both.tier("cpu"), alone.tier("cpu")
    assert (cpu.weights - without.weights, cpu.kv - without.kv) == (WEIGHTS, KV)
    assert cpu.activations == without.activations
    assert both.device_map == alone.device_map
    assert "draft model: Small in float32, 5.00 MiB of weights and 2.00 MiB of KV cache on cpu" in (
        table(both)
    )
    assert as_json(both)["draft_model"] == {
        "architecture": "Small",
        "dtype": "float32",
        "quantization": "",
        "weights": WEIGHTS,
        "kv_per_token": MIB // 2,
        "kv": KV,
    }


def test_the_larger_activations_of_both_count() -> None:
    assert planned(beside(activations=7), memory=100).tier("cpu").activations == 7 * MIB


def test_a_draft_model_is_on_the_gpu_that_executes() -> None:
    alone, both = (planned(each, 50, memory=100) for each in (footprint(), beside()))
    assert alone.execution_device == both.execution_device == 0
    assert "on GPU 0" in table(both)
    moved = both.tier("cpu").weights - alone.tier("cpu").weights
    assert both.tier("0").weights == alone.tier("0").weights + WEIGHTS - moved
    assert both.tier("0").kv == alone.tier("0").kv + KV


@pytest.mark.parametrize("device_map", ["cpu", "disk", "sequential"])
def test_any_device_map_has_a_place_for_it(device_map: str) -> None:
    options = PlacementOptions(headroom=0.0, device_map=device_map)
    placement = plan(beside(), pod(memory=100), options)
    assert placement.tier("cpu").weights >= WEIGHTS
    assert "" not in placement.device_map


def test_a_draft_model_that_does_not_fit_is_refused_and_to_leave_it_out_is_a_remedy() -> None:
    least = next(memory for memory in range(1, 100) if fits(footprint(), memory))
    assert not fits(beside(), least)
    with pytest.raises(DoesNotFit, match="or no draft_model_dir") as raised:
        planned(beside(), memory=least)
    assert raised.value.tier == "cpu"
    with pytest.raises(DoesNotFit) as alone:
        planned(beside(), memory=least - 1)
    assert "draft_model_dir" not in str(alone.value)  # it would not fit without it either


def fits(model: Footprint, memory: int) -> bool:
    try:
        planned(model, memory=memory)
    except DoesNotFit:
        return False
    return True
