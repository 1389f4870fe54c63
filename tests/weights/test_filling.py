"""Blocks that stay in main memory arrive while the model serves already."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from predictor import startup
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.errors import WeightsUnreadable
from predictor.metrics import WeightMetrics
from predictor.profiling.blocks import find_blocks
from predictor.settings import read_settings
from predictor.weights import direct_io
from predictor.weights.extents import BlockExtent
from predictor.weights.filled_blocks import find_filled_blocks
from predictor.weights.filling import Filling
from predictor.weights.load_steps import LoadSteps
from predictor.weights.parallel_reader import ParallelReader
from predictor.weights.progress import FILLING, Progress
from tests.conftest import Checkpoints
from tests.encoding.checkpoints import make_encoder_decoder
from tests.serving import Collected, Up, blocks_on_disk, bring_up, resources

PROMPT = [5, 6, 7]
Read = Callable[..., int]


class Gate:
    """Holds back the reads of blocks that stay, but not those of the rest of the model."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.opened = threading.Event()
        self.error: OSError | None = None
        self.begun: list[str] = []

    def __call__(self, reader: ParallelReader, name: str, *arguments: Any) -> int:
        if name != "weights":
            self.begun.append(name)
            assert self.opened.wait(60)
            if self.error is not None:
                raise self.error
        return self._read(reader, name, *arguments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(ParallelReader._read_direct)
    monkeypatch.setattr(ParallelReader, "_read_direct", lambda *arguments: gate(*arguments))
    yield gate
    gate.opened.set()


def start(folder: Path, offload: Path, **flags: Any) -> Up:
    return bring_up(folder, offload_folder=str(offload), **flags)


@pytest.fixture(params=["memory", "mixed"])
def flags(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> dict[str, Any]:
    """A model that stays in memory, and one of which some blocks are streamed."""
    device_map = "cpu" if request.param == "memory" else blocks_on_disk(checkpoints("llama"))
    return {"device_map": device_map}


def test_a_repeated_start_is_up_before_its_blocks_and_answers_when_they_have_arrived(
    checkpoints: Checkpoints, tmp_path: Path, gate: Gate, flags: dict[str, Any]
) -> None:
    gate.opened.set()
    first = start(checkpoints("llama"), tmp_path, **flags)
    assert first.weights.filling.bytes_left == 0
    expected = first.tokens(PROMPT, max_new_tokens=4)
    first.weights.release()

    gate.opened.clear()
    again = start(checkpoints("llama"), tmp_path, **flags)
    assert again.weights.filling.bytes_left > 0
    assert again.progress.as_json()["phase"] == FILLING
    waiting = Collected()
    again.task.engine.submit(PROMPT, SamplingParams(max_new_tokens=4), waiting)
    assert not waiting.ended.wait(0.3)
    assert again.task.engine.heartbeat.passes.progress == ""  # it is the reads that are watched
    gate.opened.set()
    assert waiting.wait().tokens == expected
    assert again.weights.filling.bytes_left == 0
    assert again.progress.as_json()["phase"] == "serving"
    again.weights.release()


def test_a_block_that_cannot_be_read_fails_the_requests_that_need_it(
    checkpoints: Checkpoints, tmp_path: Path, gate: Gate
) -> None:
    gate.opened.set()
    start(checkpoints("llama"), tmp_path, device_map="cpu").weights.release()
    gate.error = OSError(errno.EIO, "of the test")
    again = start(checkpoints("llama"), tmp_path, device_map="cpu")
    with pytest.raises(WeightsUnreadable, match=r"layers\.0 cannot be read.*of the test"):
        again.tokens(PROMPT, max_new_tokens=4)
    again.weights.release()


def test_reading_begins_before_the_rest_is_loaded(
    checkpoints: Checkpoints, gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate.opened.set()
    start(checkpoints("llama"), tmp_path, device_map="cpu").weights.release()
    load = LoadSteps.make_resident

    def await_blocks(steps: LoadSteps, model: PreTrainedModel) -> Any:
        wait_until(lambda: set(steps.filled.names) <= set(gate.begun))
        return load(steps, model)

    gate.begun.clear()
    monkeypatch.setattr(LoadSteps, "make_resident", await_blocks)
    again = start(checkpoints("llama"), tmp_path, device_map="cpu")
    again.weights.filling.finish()
    assert again.tokens(PROMPT, max_new_tokens=4)
    again.weights.release()


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "of the test")], ids=str)
def test_a_model_gets_blocks_that_arrived_or_failed_before(
    checkpoints: Checkpoints, gate: Gate, error: OSError | None
) -> None:
    gate.opened.set()
    gate.error = error
    model, filled = loaded(checkpoints("llama"))
    filling = Filling(filled, WeightMetrics("early"), Progress())
    wait_until(lambda: all(block.ended.is_set() for block in filling._blocks))
    gate.error = None
    filling.give_to(model)
    filling.finish()
    assert_equal(model, checkpoints("llama"), torch.float32)
    filling.close()


def test_the_next_wait_for_a_block_reads_it_again(checkpoints: Checkpoints, gate: Gate) -> None:
    gate.opened.set()
    gate.error = OSError(errno.EIO, "of the test")
    model, filled = loaded(checkpoints("llama"))
    filling = Filling(filled, WeightMetrics("again"), Progress())
    filling.give_to(model)
    with pytest.raises(WeightsUnreadable):
        filling.finish()
    gate.error = None
    filling.finish()
    assert filling.bytes_left == 0
    assert_equal(model, checkpoints("llama"), torch.float32)
    filling.close()


def test_reading_ends_when_the_weights_are_released(checkpoints: Checkpoints, gate: Gate) -> None:
    model, filled = loaded(checkpoints("llama"))
    filling = Filling(filled, WeightMetrics("ends"), Progress())
    filling.give_to(model)
    closing = threading.Thread(target=filling.close)
    closing.start()
    gate.opened.set()
    closing.join(30)
    assert not closing.is_alive()
    with pytest.raises(WeightsUnreadable, match="has ended"):
        filling.finish()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_and_files_end_with_the_last_block(
    checkpoints: Checkpoints, dtype: torch.dtype
) -> None:
    model, filled = loaded(checkpoints("llama"), dtype)
    before = threads_and_files()
    filling = Filling(filled, WeightMetrics("end"), Progress())
    filling.give_to(model)
    filling.finish()

    deadline = time.monotonic() + 5
    while threads_and_files() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads_and_files() - before == set()
    filling.close()


def threads_and_files() -> set[object]:
    """Threads that read weights, and open files of weights."""
    opened: set[object] = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            file = os.readlink(f"/proc/self/fd/{descriptor}")
            if file.endswith(".safetensors"):
                opened.add((descriptor, file))
    return opened | {each for each in threading.enumerate() if "weights-read" in each.name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["bloom", "gpt2", "llama-tied", "opt"])
def test_blocks_arrive_with_the_weights_that_transformers_loads(
    checkpoints: Checkpoints, architecture: str, dtype: torch.dtype
) -> None:
    model, filled = loaded(checkpoints(architecture), dtype)
    assert len(filled) > 1
    assert bool(filled[0].cast_from) == (dtype != torch.float32)
    filling = Filling(filled, WeightMetrics("values"), Progress())
    filling.give_to(model)
    filling.finish()
    filling.close()
    assert_equal(model, checkpoints(architecture), dtype)


@pytest.mark.parametrize(
    ("architecture", "form"), [("llama", {"pickle": True}), ("mixtral", {})], ids=str
)
def test_blocks_of_other_files_and_merged_experts_are_loaded_before(
    checkpoints: Checkpoints, architecture: str, form: dict[str, Any]
) -> None:
    folder = checkpoints(architecture, **form)
    assert loaded(folder, allow_pickle=True)[1] == ()


def test_weights_that_transformers_keeps_in_float32_arrive_in_it(tmp_path: Path) -> None:
    folder = make_encoder_decoder(tmp_path / "model", "t5")
    start(folder, tmp_path / "offload", device_map="cpu", dtype="float16").weights.release()
    again = start(folder, tmp_path / "offload", device_map="cpu", dtype="float16")
    again.weights.filling.finish()
    expected = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float16).state_dict()
    loaded = {
        name: parameter
        for name, parameter in again.weights.model.named_parameters()
        if any(name.startswith(f"{block.name}.") for block in again.weights.filling.blocks)
    }
    assert {p.dtype for p in loaded.values()} == {torch.float16, torch.float32}
    for name, parameter in loaded.items():
        assert parameter.dtype == expected[name].dtype
        assert torch.equal(parameter, expected[name]), name
    again.weights.release()


def test_the_model_is_ready_only_when_it_is_filled_if_that_is_set(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    start(checkpoints("llama"), tmp_path, device_map="cpu").weights.release()
    again = start(checkpoints("llama"), tmp_path, device_map="cpu", fill_before_ready=True)
    assert again.weights.filling.bytes_left == 0
    again.weights.release()


def loaded(
    folder: Path, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False
) -> tuple[PreTrainedModel, tuple[BlockExtent, ...]]:
    """A model on the meta device, and its blocks that are filled."""
    flags = {
        "model_dir": str(folder),
        "max_model_len": 64,
        "dtype": str(dtype).removeprefix("torch."),
        "device_map": "cpu",
        "allow_pickle": allow_pickle,
    }
    settings = read_settings(flags, environ={})
    prepared = startup.prepare(settings, startup.open_checkpoint(settings), resources())
    placement, model = prepared.placement, prepared.skeleton
    filled = find_filled_blocks(
        prepared.checkpoint,
        placement,
        model,
        find_blocks(model),
        prepared.packed,
        without=placement.fixed,
    )
    return model, filled.extents(model)


def assert_equal(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """The blocks of a model have the weights that transformers loads."""
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    in_memory = {name: p for name, p in model.named_parameters() if not p.is_meta}
    assert any(".1." in name for name in in_memory)
    for name, parameter in in_memory.items():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, expected[name]), name


def test_a_file_that_cannot_be_closed_keeps_nobody_waiting(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, "a volume that is gone")

    close = os.close
    model, filled = loaded(checkpoints("llama"), torch.float32)
    monkeypatch.setattr(direct_io.os, "close", fail)
    filling = Filling(filled, WeightMetrics("end"), Progress())
    filling.give_to(model)
    filling.finish()
    filling.close()
