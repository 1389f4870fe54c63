"""What needs a real CUDA device: every tier beside a GPU, and the plan against its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from predictor import startup
from predictor.pod import read
from predictor.pod.accelerators import read_accelerators
from predictor.settings import read_settings
from predictor.weights.progress import Progress
from tests.conftest import Checkpoints
from tests.serving import Collected
from tests.weights.test_loader import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPT = list(range(10, 40))
MIB = 1024**2


def bring_up(folder: Path, **flags: Any) -> Any:
    settings = read_settings(
        {"model_dir": str(folder), "max_model_len": 128, "prefill_chunk": 16, **flags}, environ={}
    )
    prepared = startup.prepare(settings, startup.open_checkpoint(settings), read(None))
    return prepared, startup.bring_up(settings, prepared, Progress())


def tokens(task: Any) -> list[int]:
    return Collected.of(task._engine, PROMPT, max_new_tokens=12).tokens


def spread(folder: Path) -> dict[str, str]:
    """Blocks in turn on the GPU, in main memory and on disk; the rest on the GPU."""
    settings = read_settings({"model_dir": str(folder), "max_model_len": 128}, environ={})
    prepared = startup.prepare(settings, startup.open_checkpoint(settings), read(None))
    blocks = [unit for unit in prepared.footprint.units if unit.block is not None]
    devices = {unit.names[0]: ("0", "cpu", "disk")[unit.block % 3] for unit in blocks}
    return {name: devices.get(name, "0") for name in prepared.placement.device_map}


@pytest.mark.parametrize("architecture", ["bloom", "gpt2", "llama", "llama-tied", "opt"])
def test_a_model_over_gpu_memory_and_disk_gives_the_tokens_of_the_cpu(
    checkpoints: Checkpoints, architecture: str
) -> None:
    folder = checkpoints(architecture)
    prepared, task = bring_up(folder, device_map=spread(folder))
    assert set(prepared.placement.device_map.values()) == {0, "cpu", "disk"}
    assert tokens(task) == reference(folder, PROMPT)


@pytest.mark.parametrize("device_map", ["auto", "cuda:0", "cpu"])
def test_strategies_and_single_devices_work(checkpoints: Checkpoints, device_map: str) -> None:
    folder = checkpoints("llama")
    _, task = bring_up(folder, device_map=device_map)
    assert tokens(task) == reference(folder, PROMPT)


def test_weights_that_wait_in_memory_for_the_gpu_are_in_no_file_pages(
    checkpoints: Checkpoints,
) -> None:
    from predictor.weights.resident import _FileMappings, _streamed_from_memory

    folder = checkpoints("llama")
    _, task = bring_up(folder, device_map=spread(folder))
    files = _FileMappings(Path("/proc/self/maps").read_text())
    waiting = [
        t for weights in _streamed_from_memory(task._engine._model) for t in weights.values()
    ]
    assert waiting
    assert not any(files.hold(tensor) for tensor in waiting if tensor.device.type == "cpu")


def test_a_small_wish_for_the_gpu_is_kept(checkpoints: Checkpoints) -> None:
    folder = checkpoints("llama")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    prepared, task = bring_up(folder, max_memory='{"0": "2MiB"}')
    planned = prepared.placement.tier("0").planned
    assert prepared.placement.tier("cpu").units
    assert tokens(task) == reference(folder, PROMPT)
    workspace = 16 * MIB  # cuBLAS takes its workspace once, whatever the model; headroom covers it
    assert torch.cuda.max_memory_allocated() - before <= planned + workspace


def test_devices_are_read_as_the_driver_reports_them() -> None:
    found = read_accelerators()
    assert len(found) == torch.cuda.device_count()
    free, total = torch.cuda.mem_get_info(0)
    assert found[0].total == total
    assert abs(found[0].free - free) < 512 * MIB
