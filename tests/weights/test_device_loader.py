"""Blocks brought to an accelerator compute what resident ones do, and in the right order.

No accelerator can be had here: a stand-in for the link to one copies as late as it may, so that
whoever does not wait for a copy, or for what uses the memory that it goes to, computes with another
block's weights. `tests/test_gpu.py` has what needs a real one.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.hooks import remove_hook_from_module

from predictor.errors import LoadFailed, WeightsUnreadable
from predictor.metrics import WeightMetrics
from predictor.profiling.blocks import find_blocks
from predictor.weights.extents import PAGE
from predictor.weights.streaming.copy_stream import page_lock
from predictor.weights.streaming.device_loader import take_out, to_device
from predictor.weights.streaming.direct_io import Buffer
from predictor.weights.streaming.hooks import Streaming, _page_lock, names_in_order
from tests.checkpoints import ALL_CONFIGS
from tests.conftest import Checkpoints
from tests.serving import Up, blocks_on_disk, bring_up
from tests.volumes import cut_store_short
from tests.weights.test_hooks import logits, streams

CPU = torch.device("cpu")


class Marked(threading.Event):
    """An event of the stand-in's; `number` counts those of what was computed."""

    def __init__(self, number: int, memory: int = 0) -> None:
        super().__init__()
        self.number = number
        self.memory = memory


class LazyLink:
    """Stands in for an accelerator's link: a copy is done when it is waited for, in order.

    What is computed is done at once; that a copy waits for what used the memory that it goes to is
    checked when it is asked for.
    """

    def __init__(self) -> None:
        self._asked: list[Any] = []
        self._lock = threading.Lock()
        self._marks = 0
        self._used: dict[int, int] = {}

    def copy(self, into: Any, source: Any, after: Any) -> Any:
        memory = into[0].untyped_storage().data_ptr()
        with self._lock:
            assert after.is_set()
            assert after.number > self._used.get(memory, 0), "the memory may still be in use"
            done = Marked(0, memory)
            self._asked.append((into, source, done))
        return done

    def mark(self) -> Any:
        with self._lock:
            self._marks += 1
            event = Marked(self._marks)
        event.set()
        return event

    def wait(self, event: Any, *, since: Any) -> None:
        assert since.is_set()
        self._happen(event)
        self._used[event.memory] = self._marks

    def finish(self, event: Any) -> None:
        self._happen(event)

    def stalled(self) -> float:
        return 0.0

    def _happen(self, event: Any) -> None:
        with self._lock:
            while not event.is_set():
                into, source, done = self._asked.pop(0)
                for target, tensor in zip(into, source, strict=True):
                    target.copy_(tensor)
                done.set()


def brought(up: Up, link: LazyLink, *, waiting: slice) -> Streaming:
    """Has a model's streamed blocks, and some that are resident, brought to an accelerator."""
    on_disk = streams(up).lane.blocks
    streams(up).close()
    for block in on_disk:
        remove_hook_from_module(up.model.get_submodule(block.name))
    waits = {name: take_out(up.model, name, move) for name in resident(up)[waiting]}
    in_order = names_in_order(up.model, on_disk, waits)
    metrics = WeightMetrics("test")
    lane = to_device(tuple(in_order), on_disk, waits, link, CPU, metrics)
    return Streaming(up.model, in_order, lane, metrics, CPU)


def move(_: str, tensor: torch.Tensor, into: torch.Tensor) -> None:
    into.copy_(tensor.detach())


def resident(up: Up) -> list[str]:
    device_map = up.prepared.placement.device_map
    return [name for name in find_blocks(up.prepared.skeleton) if device_map[name] == "cpu"]


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [*((name, torch.float32) for name in sorted(ALL_CONFIGS)), ("mixtral", torch.bfloat16)],
)
def test_logits_are_those_of_resident_blocks(
    checkpoints: Checkpoints,
    architecture: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read in pieces that end within tensors, from a store and, where it can be, in place."""
    monkeypatch.setattr("predictor.weights.streaming.device_loader.STREAM_PIECE", 3 * PAGE)
    folder = checkpoints(architecture, dtype=dtype)
    expected = logits(bring_up(folder, device_map="cpu"))
    for where, store in (
        (blocks_on_disk(folder), "always"),
        (all_blocks_on_disk(folder), "always"),
        (blocks_on_disk(folder), "auto"),
    ):
        flags = {"offload_folder": str(tmp_path / store), "offload_store": store}
        up = bring_up(folder, device_map=where, **flags)
        streaming = brought(up, LazyLink(), waiting=slice(None))
        time.sleep(0.05)  # until what may be read ahead is read
        for _ in range(3):
            assert torch.equal(logits(up), expected)
        streaming.close()
        blocks = [up.model.get_submodule(name) for name in find_blocks(up.prepared.skeleton)]
        assert {p.device.type for block in blocks for p in block.parameters()} == {"meta"}


def all_blocks_on_disk(folder: Path) -> dict[str, str]:
    some = blocks_on_disk(folder)
    kind = next(name for name, device in some.items() if device == "disk").rpartition(".")[0]
    return {name: "disk" if name.startswith(f"{kind}.") else "cpu" for name in some}


def test_blocks_may_come_in_any_order(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama")
    up = bring_up(folder, device_map=blocks_on_disk(folder))
    streaming = brought(up, LazyLink(), waiting=slice(1))
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


def test_as_much_is_page_locked_as_the_setting_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    locked: list[Buffer] = []
    monkeypatch.setattr("predictor.weights.streaming.hooks.page_lock", locked.append)
    buffers = [Buffer(size * 4096) for size in (3, 5, 2)]
    with caplog.at_level(logging.INFO):
        assert _page_lock(buffers, 6 * 4096) == 5 * 4096
    assert locked == [buffers[0], buffers[2]]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith("20.00 KiB of that are not page-locked")


def test_page_locked_memory_is_let_go_with_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go: list[int] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda address: let_go.append(address)
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = Buffer(4096)
    address = buffer.tensor.data_ptr()
    page_lock(buffer)
    assert let_go == []
    del buffer
    assert let_go == [address]


def test_a_driver_that_refuses_to_page_lock_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No driver can be had here: a stand-in answers as CUDA does (cudaErrorMemoryAllocation)."""
    asked: list[tuple[int, int, int]] = []

    def register(*arguments: int) -> int:
        asked.append(arguments)  # type: ignore[arg-type]
        return 2

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaGetErrorString={2: "out of memory"}.__getitem__
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = Buffer(3 * 4096)
    said = r"12\.00 KiB more .*\(out of memory\); lower --pinned_memory_fraction, or "
    with pytest.raises(LoadFailed, match=said):
        page_lock(buffer)
    assert asked == [(buffer.tensor.data_ptr(), 3 * 4096, 1)]


def test_a_copy_that_fails_is_told_and_the_next_pass_tries_again(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    expected = logits(bring_up(folder, device_map="cpu"))
    flags = {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, device_map=all_blocks_on_disk(folder), **flags)
    link = LazyLink()
    streaming = brought(up, link, waiting=slice(None))
    right = link.copy

    def fail(*_: Any) -> Any:
        raise RuntimeError("the link is down")

    for _ in range(3):
        link.copy = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="the link is down"):
            logits(up)
        link.copy = right  # type: ignore[method-assign]
    assert torch.equal(logits(up), expected)
    streaming.close()


def test_a_block_that_cannot_be_read_is_said_as_on_the_processor(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predictor.weights.streaming.direct_io._SECONDS_BETWEEN_TRIES", 0.0)
    folder = checkpoints("llama")
    flags = {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
    streaming = brought(up, LazyLink(), waiting=slice(None))
    cut_store_short(tmp_path)
    for _ in range(2):
        with pytest.raises(WeightsUnreadable, match=r"layers\.\d cannot be read from .*store"):
            logits(up)
    streaming.close()
