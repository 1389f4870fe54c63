"""What published models need, by the numbers of their pages, and how much work it is to plan them.

``published.jsonl`` has a model a line: the values of its config.json that sizes depend on, and the
number of parameters that its page on the Hugging Face hub or its report states, without the layers
that predict further tokens, which transformers does not load. Tied weights count once. Where the
cache in bfloat16 is worked out by hand, the line says how: bytes per token of layers that keep all,
and of those that keep a window or a chunk (``in_window``).
"""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from predictor.checkpoint.positions import context_length
from predictor.live_bytes import LiveBytes
from predictor.placement.plan import PlacementOptions
from predictor.placement.planner import plan
from predictor.profiling.blocks import find_blocks
from predictor.profiling.footprint import build_on_meta, measure_footprint
from predictor.profiling.probe import Probe
from predictor.profiling.unit_sizes import measure_units
from predictor.profiling.weight_reads import Readers
from tests.placement.small import pod

ROWS = map(json.loads, (Path(__file__).parent / "published.jsonl").read_text().splitlines())
PUBLISHED = {row["name"]: row for row in ROWS}
WORKED = [name for name, row in PUBLISHED.items() if "worked" in row]

QUICK = {"Jamba-1.5-Large", "Qwen3-Next-80B-A3B", "FalconMamba-7B", "DeepSeek-V3", "bloom"}
MOST_OPERATIONS = 40_000
"""Operations on the meta device for a plan: five seconds of a processor at most."""


def on_meta(name):
    values = dict(PUBLISHED[name]["config"])
    return build_on_meta(AutoConfig.for_model(values.pop("model_type"), **values), "bfloat16")


def but_quick(names):
    """The names, of which few run without ``--full-grid``."""
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.full_grid) for name in names
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weights_are_the_published_parameters(name):
    model = on_meta(name)
    blocks = find_blocks(model)
    nothing = Probe((0,) * len(blocks), (0,) * len(blocks), 0, 0, measured=True)
    units = measure_units(model, blocks, nothing, Readers(blocks), with_experts=True)

    planned = sum(unit.weights + unit.fixed for unit in units)
    assert planned == pytest.approx(2 * PUBLISHED[name]["parameters"], rel=0.005)


@pytest.mark.parametrize("name", WORKED)
def test_the_cache_is_what_is_worked_out_by_hand(name):
    window = PUBLISHED[name].get("window", 0)
    length = max(32, 2 * window)
    footprint = measure_footprint(on_meta(name), max_model_len=length, prefill_chunk=16)

    assert footprint.probed
    assert footprint.kv_per_token == PUBLISHED[name]["per_token"]
    assert (footprint.window, footprint.kv_windowed) == (
        window,
        PUBLISHED[name].get("in_window", 0),
    )
    if PUBLISHED[name]["per_sequence"] is not None:
        fixed = sum(unit.kv_fixed for unit in footprint.units)
        assert fixed == PUBLISHED[name]["per_sequence"]


@pytest.mark.parametrize("name", ["bloom", "DeepSeek-V2", "DBRX"])
def test_models_of_which_two_blocks_fill_a_gpu_of_24_gib_compute_on_it(name):
    footprint = measure_footprint(on_meta(name), max_model_len=2048, prefill_chunk=512)
    gib = 1024
    placement = plan(footprint, pod(24 * gib, memory=64 * gib), PlacementOptions())

    assert placement.execution_device == 0
    assert placement.by_block == (name != "bloom")  # blocks of 4.6 GiB beside 7.7 GiB of KV cache


@pytest.mark.parametrize("name", but_quick(PUBLISHED))
def test_a_plan_at_the_default_length_takes_a_bounded_number_of_operations(name, monkeypatch):
    model = on_meta(name)
    dispatch, count = LiveBytes.__torch_dispatch__, []
    monkeypatch.setattr(
        LiveBytes, "__torch_dispatch__", lambda *a, **k: [count.append(1), dispatch(*a, **k)][1]
    )
    length = context_length(model.config)
    measure_footprint(model, max_model_len=length, prefill_chunk=length)

    assert 0 < len(count) <= MOST_OPERATIONS
