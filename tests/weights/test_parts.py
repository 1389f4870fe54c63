"""What is no whole block is streamed too: modules, parts outside of blocks, shared weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.placement.plan import Placement
from predictor.startup import Prepared
from tests import states
from tests.conftest import Checkpoints
from tests.serving import Up, bring_up
from tests.weights.test_hooks import logits


def by_module(prepared: Prepared) -> Placement:
    return replace(prepared.placement, by_block=False)


def through_one_buffer(prepared: Prepared) -> Placement:
    return replace(by_module(prepared), stream_buffers=1)


def names(up: Up) -> tuple[set[str], set[str]]:
    streamed: Any = up.weights.streamed
    return set(streamed.blocks.blocks), set(streamed.others.blocks)


@pytest.mark.parametrize(
    ("architecture", "store"), [("llama-tied", "always"), ("mixtral", "never"), ("opt", "never")]
)
def test_a_model_streamed_by_module_computes_what_a_resident_one_does(
    checkpoints: Checkpoints, tmp_path: Path, architecture: str, store: str
) -> None:
    folder = checkpoints(architecture)
    expected = logits(bring_up(folder, device_map="cpu"))
    flags = {"device_map": "disk", "offload_folder": str(tmp_path), "offload_store": store}
    up = bring_up(folder, change_placement=by_module, **flags)
    modules, _ = names(up)
    assert all(name.count(".") > 2 for name in modules)
    assert torch.equal(logits(up), expected)


def test_a_model_streamed_through_one_buffer_computes_the_same(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("mixtral")
    expected = logits(bring_up(folder, device_map="cpu"))
    flags = {"device_map": "disk", "offload_folder": str(tmp_path), "offload_store": "never"}
    up = bring_up(folder, change_placement=through_one_buffer, **flags)
    streamed: Any = up.weights.streamed.blocks
    largest = max(block.size for block in streamed.loader.blocks)
    assert sum(buffer.tensor.nbytes for buffer in streamed.loader.buffers) < 2 * largest
    assert torch.equal(logits(up), expected)


def test_a_tied_head_is_read_from_where_the_embeddings_are(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama-tied")
    flags = {"device_map": "disk", "offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, **flags)
    assert names(up)[1] == {"model.embed_tokens", "model.norm", "lm_head"}
    streamed: Any = up.weights.streamed.others
    segments = {block.name: block.segments for block in streamed.loader.blocks}
    assert segments["lm_head"] == segments["model.embed_tokens"]
    assert all(p.is_meta for p in up.model.parameters())


def test_blocks_that_share_weights_are_streamed(tmp_path: Path) -> None:
    folder = states.make_checkpoint(tmp_path / "model", "zamba2")
    tokens = [
        bring_up(folder, device_map=where).tokens([5, 6, 7], max_new_tokens=4)
        for where in ("cpu", "disk")
    ]
    assert tokens[0] == tokens[1]


def test_where_two_blocks_do_not_fit_the_plan_streams_their_modules(
    checkpoints: Checkpoints,
) -> None:
    folder = checkpoints("llama")
    whole = bring_up(folder, device_map="disk", max_concurrency=1)
    tier = whole.prepared.placement.tier("cpu")
    cap = f'{{"cpu": {tier.planned - 1}}}'
    flags = {"max_memory": cap, "memory_headroom": 0, "max_concurrency": 1}
    up = bring_up(folder, device_map="disk", **flags)
    assert not up.prepared.placement.by_block
    assert up.prepared.placement.tier("cpu").staging < tier.staging
    assert up.weights.buffer_bytes <= up.prepared.placement.tier("cpu").staging
    assert torch.equal(logits(up), logits(whole))
