"""Experts in slots beside dense parts on disk, which are streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.placement.plan import Placement
from predictor.profiling.blocks import find_blocks
from predictor.startup import Prepared
from tests.conftest import Checkpoints
from tests.serving import bring_up
from tests.weights.experts.serving import NEW_TOKENS, placement_with_slots
from tests.weights.experts.test_families import PROMPTS, Reference


def every_second_on_disk(prepared: Prepared) -> Placement:
    placement = placement_with_slots(prepared, 2)
    blocks = find_blocks(prepared.skeleton)[::2]
    return replace(placement, device_map={**placement.device_map, **dict.fromkeys(blocks, "disk")})


def every_second_by_module(prepared: Prepared) -> Placement:
    """The same with dense parts by module, through one buffer, as a plan has them."""
    apart = prepared.footprint.with_experts_apart()
    assert apart is not None
    modules = {unit.names[0]: unit.modules for unit in apart.units if unit.is_block}
    placement = every_second_on_disk(prepared)
    modules = {**placement.modules, **modules}
    return replace(placement, by_block=False, stream_buffers=1, modules=modules)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("change", [every_second_on_disk, every_second_by_module])
@pytest.mark.parametrize(
    ("stored", "flags"),
    [
        (torch.float32, {"offload_store": "never"}),
        (torch.float32, {"offload_store": "always"}),
        (torch.bfloat16, {"offload_store": "always"}),
        (torch.bfloat16, {"offload_store": "never"}),
    ],
    ids=["in-place", "store", "cast-in-store", "cast-while-read"],
)
def test_tokens_are_those_of_transformers(
    mixtures: Checkpoints,
    tmp_path: Path,
    name: str,
    change: Callable[[Prepared], Placement],
    stored: torch.dtype,
    flags: dict[str, Any],
) -> None:
    folder = mixtures(name, dtype=stored)
    up = bring_up(
        folder,
        dtype="float32",
        device_map="cpu",
        offload_folder=str(tmp_path),
        change_placement=change,
        **flags,
    )
    assert up.weights.experts is not None
    streaming: Any = up.weights.streaming
    by_module = change is every_second_by_module
    assert all((name.count(".") > 2) == by_module for name in streaming.blocks)
    assert not any(name.endswith("experts") for name in streaming.blocks)
    wanted = Reference(folder, torch.float32).tokens(PROMPTS[:2])
    assert [up.tokens(prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS[:2]] == wanted
    up.task.engine.stop()
    assert up.task.engine.join(30)
    up.weights.release()
    up.weights.experts.close()
