"""Streamed blocks compute what resident ones do, bit for bit, wherever they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.errors import WeightsUnreadable
from predictor.private.accelerate import remove_hook_from_module
from predictor.weights.extents import BlockExtent
from tests.checkpoints import ALL_CONFIGS
from tests.conftest import Checkpoints
from tests.grids import thinned
from tests.serving import Up, blocks_on_disk, bring_up
from tests.volumes import cut_store_short

IDS = torch.tensor([[7, 3, 11, 2, 19, 5]])
DTYPES = (torch.float32, torch.bfloat16)


@torch.inference_mode()
def logits(up: Up) -> torch.Tensor:
    """Return the logits of the second of two forward passes: it reuses the slots of the first."""
    up.model(input_ids=IDS)
    result: torch.Tensor = up.model(input_ids=IDS).logits
    return result


def streams(up: Up) -> Any:
    streaming = up.weights.streaming
    assert streaming is not None
    return streaming


def detach_streaming(up: Up) -> tuple[BlockExtent, ...]:
    """Take the hooks off the streamed blocks, and return the blocks on disk."""
    blocks: tuple[BlockExtent, ...] = tuple(streams(up).loader.blocks)
    streams(up).close()
    for block in blocks:
        remove_hook_from_module(up.model.get_submodule(block.name))
    return blocks


ARCHITECTURES = sorted(ALL_CONFIGS)


@pytest.mark.parametrize(("architecture", "dtype"), thinned(ARCHITECTURES, DTYPES), ids=str)
def test_logits_are_those_of_resident_blocks(
    checkpoints: Checkpoints, tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    folder = checkpoints(architecture, dtype=dtype)
    expected = logits(bring_up(folder, device_map="cpu"))
    for where in (blocks_on_disk(folder), "disk"):
        for store in ("never", "always"):
            up = bring_up(
                folder,
                device_map=where,
                offload_folder=str(tmp_path / "offload"),
                offload_store=store,
            )
            assert up.sources == {"store" if store == "always" else "checkpoint"}
            assert torch.equal(logits(up), expected)
            streams(up).close()


@pytest.mark.parametrize("pickle", [False, True])
def test_a_second_start_reads_the_store_and_rewrites_nothing(
    checkpoints: Checkpoints, tmp_path: Path, pickle: bool
) -> None:
    folder = checkpoints("mixtral" if not pickle else "opt", pickle=pickle)
    flags = {"offload_folder": str(tmp_path), "allow_pickle": pickle}
    ups = [bring_up(folder, device_map=blocks_on_disk(folder), **flags) for _ in range(2)]
    (store,) = tmp_path.glob("*.store")
    assert [up.sources for up in ups] == [{"store"}, {"store"}]
    assert torch.equal(logits(ups[0]), logits(ups[1]))
    assert [file.suffix for file in tmp_path.iterdir() if file.is_dir()] == []
    assert store.stat().st_nlink == 1


def test_a_checkpoint_in_another_dtype_is_stored_as_it_is_served(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    expected = logits(bring_up(folder, device_map="cpu", dtype="bfloat16"))
    flags = {"dtype": "bfloat16", "offload_folder": str(tmp_path)}
    for _ in range(2):
        up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
        assert up.sources == {"store"}
        assert torch.equal(logits(up), expected)
    half = sum(block.size for block in streams(up).loader.blocks)
    assert half < 0.6 * 4 * sum(p.numel() for p in up.model.model.layers[::2].parameters())


def test_outside_its_forward_pass_a_block_has_no_weights(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama")
    up = bring_up(folder, device_map=blocks_on_disk(folder))
    logits(up)
    for index, block in enumerate(up.model.model.layers):
        where = {parameter.device.type for parameter in block.parameters()}
        assert where == {"meta" if index % 2 == 0 else "cpu"}


def test_a_pass_that_fails_within_a_block_leaves_the_next_one_right(
    checkpoints: Checkpoints,
) -> None:
    folder = checkpoints("llama")
    up = bring_up(folder, device_map=blocks_on_disk(folder))
    expected = logits(up)
    block = up.model.model.layers[2]
    right = block.mlp.forward

    def fail(*_: Any) -> Any:
        raise ValueError("within a block")

    block.mlp.forward = fail
    for _ in range(3):
        with pytest.raises(ValueError, match="within a block"):
            logits(up)
    block.mlp.forward = right
    assert torch.equal(logits(up), expected)


def test_a_block_that_cannot_be_read_any_more_breaks_the_engine_with_one_sentence(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    flags = {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
    cut_store_short(tmp_path)
    for _ in range(2):
        with pytest.raises(WeightsUnreadable, match=r"layers\.\d cannot be read from .*store"):
            up.tokens([5, 6], max_new_tokens=8)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_without_a_store_weights_are_cast_while_they_are_read(
    checkpoints: Checkpoints, stored: torch.dtype
) -> None:
    folder = checkpoints("llama", dtype=stored)
    served = "bfloat16" if stored == torch.float32 else "float32"
    expected = logits(bring_up(folder, device_map="cpu", dtype=served))
    up = bring_up(folder, device_map="disk", dtype=served)
    assert up.sources == {"checkpoint"}
    assert torch.equal(logits(up), expected)
