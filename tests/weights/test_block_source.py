"""The source of a start's streamed blocks: store, checkpoint, or neither."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from predictor.engine import warmup
from predictor.engine.generation import open_runner
from predictor.errors import ConfigurationError
from predictor.metrics import WeightMetrics
from predictor.weights.block_source import BlockSourceResolver
from predictor.weights.offload_config import OffloadConfig
from predictor.weights.progress import Progress
from predictor.weights.store.folder import StoreFolder
from predictor.weights.store.format import Identity
from predictor.weights.store.warmup_cache import WarmupCache
from tests.conftest import Checkpoints
from tests.serving import GIB, Up, blocks_on_disk, bring_up
from tests.volumes import read_only, small_volume


def start(folder: Path, offload: Path, **flags: Any) -> Up:
    """Start with every second block on disk, and stop cleanly."""
    maps = {"device_map": blocks_on_disk(folder), "offload_folder": str(offload)}
    up = bring_up(folder, **maps, **flags)
    up.weights.release()
    return up


def stores(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if ".store" in file.name and file.stat().st_size]


def test_a_checkpoint_on_the_same_volume_is_read_in_place(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    up = start(checkpoints("llama"), tmp_path)
    assert up.sources == {"checkpoint"}
    assert stores(tmp_path) == []


def test_never_writes_nothing_and_looks_for_nothing(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    assert start(folder, tmp_path, offload_store="always").sources == {"store"}
    assert start(folder, tmp_path, offload_store="never").sources == {"checkpoint"}


def test_a_store_that_is_there_is_used_by_auto(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoints("llama")
    start(folder, tmp_path, offload_store="always")
    assert start(folder, tmp_path).sources == {"store"}


def test_without_room_for_a_store_the_checkpoint_is_read_and_the_log_says_so(
    checkpoints: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoints("llama")
    with caplog.at_level(logging.WARNING):
        up = start(folder, tmp_path, free=8192, dtype="bfloat16")
    assert up.sources == {"checkpoint"}  # cast while it is read
    assert "lacks space: the store takes" in caplog.text
    with pytest.raises(ConfigurationError, match=r"lacks space: the store takes .* 8.00 KiB"):
        start(folder, tmp_path, offload_store="always", left=8192)
    assert stores(tmp_path) == []


@pytest.mark.root
def test_a_volume_that_fills_up_while_the_store_is_written_harms_nothing(
    checkpoints: Checkpoints,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = checkpoints("bloom")
    expected = bring_up(folder, device_map="cpu").tokens([5, 6, 7], max_new_tokens=6)
    monkeypatch.setattr("predictor.weights.block_source.is_faster", lambda *_: True)
    with small_volume(tmp_path, 8 * 2**20) as volume:
        space = os.statvfs(volume)
        (volume / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 300 * 1024))
        with caplog.at_level(logging.WARNING):
            up = start(folder, volume / "offload", free=GIB)
        assert "No space left" in caplog.text
        assert up.sources == {"checkpoint"}
        assert up.tokens([5, 6, 7], max_new_tokens=6) == expected
        assert stores(volume) == []


@pytest.mark.root
def test_a_read_only_volume_with_a_store_serves(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder, offload = checkpoints("llama"), tmp_path / "offload"
    offload.mkdir()
    first = start(folder, offload, offload_store="always")
    with read_only(offload):
        again = start(folder, offload)
        assert again.sources == {"store"}
        assert again.tokens([5, 6], max_new_tokens=5) == first.tokens([5, 6], max_new_tokens=5)


@pytest.mark.parametrize("source", ["store", "checkpoint"])
def test_the_next_start_does_not_repeat_the_measurements_of_the_first(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    folder = checkpoints("llama")
    first = start(folder, tmp_path, offload_store="always" if source == "store" else "auto")
    assert first.sources == {source}

    (cache,) = tmp_path.glob("*.known.json")
    measured = cache.read_bytes()

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model is run again")

    monkeypatch.setattr(open_runner, "check_batch_invariance", fail)
    monkeypatch.setattr(warmup, "time_forward_passes", fail)
    again = start(folder, tmp_path)
    assert again.tokens([5, 6], max_new_tokens=5) == first.tokens([5, 6], max_new_tokens=5)
    assert cache.read_bytes() == measured


def test_the_cost_of_a_forward_pass_is_measured_again_for_longer_ones(tmp_path: Path) -> None:
    ran: list[int] = []
    for chunk in (8, 8, 16):
        warmup_cache = WarmupCache(tmp_path / "known.json")
        warmup.measure_pass(ran.append, chunk, timed=2, warmup_cache=warmup_cache)
        ran.append(-chunk)
    first, again = ran.index(-8), ran.index(-16)
    assert ran[first : first + 2] == [-8, -8]
    assert ran[first + 2 : again]


def test_measurements_under_other_conditions_are_not_used(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    WarmupCache(file).keep(batches=1)
    assert WarmupCache(file).get("batches") == 1
    assert WarmupCache(file, device="cpu").get("batches") is None
    assert WarmupCache(file, transformers="0.0").get("batches") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"under": 3}', '{"facts": {"batches": "x"}}'])
def test_measurements_that_cannot_be_read_are_not_used(tmp_path: Path, text: str) -> None:
    file = tmp_path / "known.json"
    file.write_text(text)
    assert WarmupCache(file).get("batches") is None


def test_a_store_that_cannot_be_written_and_is_needed_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"block.weight": torch.zeros(4)}, file)
    index = {"block.weight": {"safetensors_file": str(file), "weight_name": "block.weight"}}
    blocks = {"block": {"block.weight": torch.nn.Parameter(torch.zeros(2, 2, device="meta"))}}
    folder = StoreFolder(tmp_path / "offload", Identity("model", "name", "float32"))
    offload = OffloadConfig(folder.folder, needs_conversion=True)
    resolver = BlockSourceResolver(offload, folder, blocks, Progress(), WeightMetrics("test"))
    with (
        resolver.opened(),
        pytest.raises(ConfigurationError, match=r"written anew .*, and the .* lacks space"),
    ):
        resolver.resolve(blocks, index)
