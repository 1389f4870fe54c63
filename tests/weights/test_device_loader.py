"""Blocks copied to an accelerator compute what resident ones do, and in the right order.

There is no accelerator here: a stand-in for the copy stream copies as late as possible. Code that
does not wait for a copy, or for the computation that uses the target memory, would compute with
another block's weights. `tests/test_gpu.py` has the tests that need a real accelerator.
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

from predictor.errors import LoadFailed, WeightsUnreadable
from predictor.metrics import WeightMetrics
from predictor.placement.buffers import STREAM_PIECE
from predictor.profiling.blocks import find_blocks
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.extents import PAGE, BlockExtent, StoredTensor, TensorView
from predictor.weights.streaming.cast_reader import split_cast
from predictor.weights.streaming.copy_stream import page_lock, page_lock_within
from predictor.weights.streaming.device_loader import move_to_buffer, open_device_loader
from predictor.weights.streaming.hooks import Streaming, names_in_order
from tests.checkpoints import ALL_CONFIGS
from tests.conftest import Checkpoints
from tests.serving import Up, blocks_on_disk, bring_up
from tests.volumes import cut_store_short
from tests.weights.test_hooks import detach_streaming, logits

CPU = torch.device("cpu")


class Marked(threading.Event):
    """An event of the stand-in; `number` counts the events of the computation."""

    def __init__(self, number: int, memory: int = 0) -> None:
        super().__init__()
        self.number = number
        self.memory = memory


class LazyCopyStream:
    """Stands in for a copy stream: a copy is made when it is waited for, in order.

    Computation is done at once. When a copy is requested, the stand-in checks that the copy waits
    for the computation that used its target memory.
    """

    def __init__(self) -> None:
        self._requested: list[Any] = []
        self._lock = threading.Lock()
        self._events = 0
        self._used: dict[int, int] = {}

    def copy(self, into: Any, source: Any, after: Any) -> Any:
        memory = into[0].untyped_storage().data_ptr()
        with self._lock:
            assert after.is_set()
            assert after.number > self._used.get(memory, 0), "the memory may still be in use"
            done = Marked(0, memory)
            self._requested.append((into, source, done))
        return done

    def record(self) -> Any:
        with self._lock:
            self._events += 1
            event = Marked(self._events)
        event.set()
        return event

    def wait(self, event: Any, *, since: Any) -> None:
        assert since.is_set()
        self._happen(event)
        self._used[event.memory] = self._events

    def synchronize(self, event: Any) -> None:
        self._happen(event)

    def take_stall_seconds(self) -> float:
        return 0.0

    def _happen(self, event: Any) -> None:
        with self._lock:
            while not event.is_set():
                into, source, done = self._requested.pop(0)
                for target, tensor in zip(into, source, strict=True):
                    target.copy_(tensor)
                done.set()


def stream_to_device(
    up: Up, stream: LazyCopyStream, *, moved: slice, chunk_bytes: int = STREAM_PIECE
) -> Streaming:
    """Stream a model's blocks on disk, and some resident ones, to an accelerator."""
    on_disk = detach_streaming(up)
    host_blocks = {name: move_to_buffer(up.model, name, copy) for name in resident(up)[moved]}
    in_order = names_in_order(up.model, on_disk, host_blocks)
    metrics = WeightMetrics("test")
    loader = open_device_loader(
        tuple(in_order), on_disk, host_blocks, stream, CPU, metrics, chunk_bytes=chunk_bytes
    )
    return Streaming(up.model, in_order, loader, metrics, CPU)


def copy(_: str, tensor: torch.Tensor, into: torch.Tensor) -> None:
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
) -> None:
    """Chunks end within tensors; blocks come from a store and, if possible, from the checkpoint."""
    folder = checkpoints(architecture, dtype=dtype)
    expected = logits(bring_up(folder, device_map="cpu"))
    for where, store in (
        (blocks_on_disk(folder), "always"),
        (all_blocks_on_disk(folder), "always"),
        (blocks_on_disk(folder), "auto"),
    ):
        flags = {"offload_folder": str(tmp_path / store), "offload_store": store}
        up = bring_up(folder, device_map=where, **flags)
        streaming = stream_to_device(up, LazyCopyStream(), moved=slice(None), chunk_bytes=3 * PAGE)
        time.sleep(0.05)  # until the first blocks are read ahead
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
    streaming = stream_to_device(up, LazyCopyStream(), moved=slice(1))
    expected = dict(checkpoint_weights(folder))
    draw = random.Random(7)
    for _ in range(100):
        index = draw.randrange(len(streaming.blocks))
        streaming.enter(index)
        block = streaming.blocks[index]
        for name, tensor in up.model.get_submodule(block).named_parameters(prefix=block):
            assert torch.equal(tensor, expected[name])
        streaming.leave()
    streaming.close()


def checkpoint_weights(folder: Path) -> Any:
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_tensor(name)


def test_as_much_is_page_locked_as_the_setting_says(caplog: pytest.LogCaptureFixture) -> None:
    locked: list[AlignedBuffer] = []
    buffers = [AlignedBuffer(size * 4096) for size in (3, 5, 2)]
    with caplog.at_level(logging.INFO):
        assert page_lock_within(6 * 4096, buffers, locked.append) == 5 * 4096
    assert locked == [buffers[0], buffers[2]]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith("20.00 KiB of that are not page-locked")


def test_page_locked_memory_is_unlocked_with_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    unlocked: list[int] = []
    runtime = SimpleNamespace(
        cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda address: unlocked.append(address)
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = AlignedBuffer(4096)
    address = buffer.tensor.data_ptr()
    page_lock(buffer)
    assert unlocked == []
    del buffer
    assert unlocked == [address]


def test_a_driver_that_refuses_to_page_lock_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no driver here: a stand-in answers as CUDA does (cudaErrorMemoryAllocation)."""
    calls: list[tuple[int, int, int]] = []

    def register(*arguments: int) -> int:
        calls.append(arguments)  # type: ignore[arg-type]
        return 2

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaGetErrorString={2: "out of memory"}.__getitem__
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = AlignedBuffer(3 * 4096)
    sentence = r"12\.00 KiB more .*\(out of memory\); lower --pinned_memory_fraction, or "
    with pytest.raises(LoadFailed, match=sentence):
        page_lock(buffer)
    assert calls == [(buffer.tensor.data_ptr(), 3 * 4096, 1)]


def test_the_error_of_a_copy_is_raised_and_the_next_forward_pass_tries_again(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    expected = logits(bring_up(folder, device_map="cpu"))
    flags = {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, device_map=all_blocks_on_disk(folder), **flags)
    stream = LazyCopyStream()
    streaming = stream_to_device(up, stream, moved=slice(None))
    right = stream.copy

    def fail(*_: Any) -> Any:
        raise RuntimeError("the link is down")

    for _ in range(3):
        stream.copy = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="the link is down"):
            logits(up)
        stream.copy = right  # type: ignore[method-assign]
    assert torch.equal(logits(up), expected)
    streaming.close()


def test_a_block_that_cannot_be_read_is_the_same_error_as_on_the_processor(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("llama")
    flags = {"offload_folder": str(tmp_path), "offload_store": "always"}
    up = bring_up(folder, device_map=blocks_on_disk(folder), **flags)
    streaming = stream_to_device(up, LazyCopyStream(), moved=slice(None))
    cut_store_short(tmp_path)
    for _ in range(2):
        with pytest.raises(WeightsUnreadable, match=r"layers\.\d cannot be read from .*store"):
            logits(up)
    streaming.close()


def test_what_is_not_streamed_stays_where_it_is() -> None:
    model = torch.nn.ModuleDict({"block": torch.nn.Linear(4, 3)})
    block = move_to_buffer(model, "block", copy, without={"block.bias"})
    assert [tensor.name for tensor in block.tensors] == ["block.weight"]
    assert {name for name, tensor in model.named_parameters() if tensor.is_meta} == {"block.weight"}


@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("served", [torch.bfloat16, torch.float32, torch.float64])
def test_a_chunk_that_is_cast_is_within_its_limit_before_and_after(
    tmp_path: Path, stored: torch.dtype, served: torch.dtype
) -> None:
    count = 5000
    tensor = StoredTensor(tmp_path, 0, count * stored.itemsize, stored, (count,), (0, 0, 0, 0))
    view = TensorView("a", served, (count,), 0)
    block = BlockExtent("block", (), (view,), "checkpoint", (tensor,))
    chunks = [chunk for chunk, _ in split_cast(block, block.tensors, 4096)]
    sizes = [(x.cast_from[0].end - x.cast_from[0].begin, x.tensors[0].nbytes) for x in chunks]
    assert max(map(max, sizes)) == 4096
    assert sum(size for _, size in sizes) == view.nbytes
