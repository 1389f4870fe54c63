"""Blocks brought to an accelerator compute what resident ones do, and in the right order.

No accelerator can be had here: a stand-in for the link to one copies as late as it may, so that
whoever does not wait for a copy, or for what uses the memory that it goes to, computes with another
block's weights. `tests/test_gpu.py` has what needs a real one.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.errors import WeightsUnreadable
from predictor.metrics import WeightMetrics
from predictor.weights.copying import ToDevice, take_out
from predictor.weights.from_disk import FromDisk
from predictor.weights.streaming import Streaming
from tests.checkpoints import ALL_CONFIGS
from tests.conftest import Checkpoints
from tests.serving import Up, blocks_on_disk, bring_up
from tests.weights.test_streaming import logits, streams

CPU = torch.device("cpu")


class LazyLink:
    """Stands in for an accelerator's link: what is asked happens when it is waited for, in order.

    Whatever is computed is done at once, so every mark has happened, except the one that a copy has
    to come after: until then the memory it goes to is in use, and a copy that came before is found.
    """

    def __init__(self) -> None:
        self._asked: list[Any] = []
        self._lock = threading.Lock()
        self.copies = 0

    def copy(self, into: Any, source: Any, after: Any) -> Any:
        done = threading.Event()
        with self._lock:
            self._asked.append((into, source, after, done))
        return done

    def mark(self) -> Any:
        event = threading.Event()
        event.set()
        return event

    def wait(self, event: Any, *, since: Any) -> None:
        assert since.is_set()
        self._happen(event)

    def finish(self, event: Any) -> None:
        self._happen(event)

    def stalled(self) -> float:
        return 0.0

    def _happen(self, event: Any) -> None:
        with self._lock:
            while not event.is_set():
                into, source, after, done = self._asked.pop(0)
                assert after.is_set()
                for target, tensor in zip(into, source, strict=True):
                    target.copy_(tensor)
                self.copies += 1
                done.set()


def to_device(up: Up, device_link: Any, *, waiting: slice) -> Streaming:
    """Has a model's streamed blocks, and some that are resident, brought to an accelerator."""
    blocks = {block.name: block for block in streams(up).lane.blocks}
    streams(up).close()
    names = [name for name, _ in up.model.named_modules() if name in blocks or name in resident(up)]
    taken = {name: take_out(up.model, name) for name in resident(up)[waiting]}
    on_disk = [blocks[name] for name in names if name in blocks]
    metrics = WeightMetrics("test")
    order = [name for name in names if name in blocks or name in taken]
    sources = [taken.get(name) or on_disk.index(blocks[name]) for name in order]
    disk = FromDisk(on_disk, metrics)
    lane = ToDevice(sources, disk, device_link, CPU, metrics)
    named = {
        name: taken[name].names if name in taken else [t.name for t in blocks[name].tensors]
        for name in order
    }
    for name in blocks:  # the processor's hooks make way
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(up.model.get_submodule(name))
    return Streaming(up.model, named, lane, metrics, CPU)


def resident(up: Up) -> list[str]:
    from predictor.placement.footprint import find_blocks

    device_map = up.prepared.placement.device_map
    return [name for name in find_blocks(up.prepared.skeleton) if device_map[name] == "cpu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", sorted(ALL_CONFIGS))
def test_logits_are_those_of_resident_blocks(
    checkpoints: Checkpoints, architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = checkpoints(architecture, dtype=dtype)
    expected = logits(bring_up(folder, device_map="cpu"))
    flags = {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
    streaming = to_device(up, LazyLink(), waiting=slice(None))
    assert {
        p.device.type for n in resident(up) for p in up.model.get_submodule(n).parameters()
    } == {"meta"}
    for _ in range(3):
        assert torch.equal(logits(up), expected)
    streaming.close()


def test_blocks_may_come_in_any_order(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama")
    up = bring_up(folder, device_map=blocks_on_disk(folder))
    streaming = to_device(up, LazyLink(), waiting=slice(1))
    expected = dict(checkpoint_weights(folder))
    draw = random.Random(7)
    for _ in range(100):
        index = draw.randrange(len(streaming._places))
        streaming.enter(index)
        for module, name in streaming._places[index]:
            tensor = module._parameters[name]
            full = next(f"{path}.{name}" for path, one in up.model.named_modules() if one is module)
            assert torch.equal(tensor, expected[full])
        streaming.leave()
    streaming.close()


def checkpoint_weights(folder: Path) -> Any:
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_tensor(name)


def test_a_block_that_cannot_be_read_is_said_as_on_the_processor(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predictor.weights.reading._SECONDS_BETWEEN_TRIES", 0.0)
    folder = checkpoints("llama")
    flags = {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
    streaming = to_device(up, LazyLink(), waiting=slice(None))
    (store,) = tmp_path.glob("*.store")
    with store.open("r+b") as file:
        file.truncate(8192)
    for _ in range(2):
        with pytest.raises(WeightsUnreadable, match=r"layers\.\d cannot be read from .*store"):
            logits(up)
    streaming.close()
