"""Tests that need a CUDA device: every tier beside a GPU, and the plan against its memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.placement.plan import Placement
from predictor.pod import read_resources
from predictor.pod.accelerators import read_accelerators
from predictor.pod.resources import PodResources
from predictor.startup import Prepared
from predictor.weights.direct_io import AlignedBuffer
from predictor.weights.experts.device_cache import DeviceExpertCache
from predictor.weights.experts.ways import Way, WayChoice
from predictor.weights.streaming.copy_stream import CopyStream, page_lock
from predictor.weights.streaming.device_loader import DeviceBlockLoader, HostBlock
from tests.conftest import Checkpoints
from tests.encoding.checkpoints import make_encoder
from tests.encoding.test_encoder_tasks import ask
from tests.serving import Up, bring_up
from tests.weights.experts.serving import STAGING, placement_with_slots
from tests.weights.test_hooks import IDS
from tests.weights.test_loader import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPT = list(range(10, 40))
MIB = 1024**2


@pytest.fixture(scope="module")
def pod() -> PodResources:
    return read_resources(None)


def spread(folder: Path, pod: PodResources, **flags: Any) -> dict[str, str]:
    """Blocks in turn on the GPU, in main memory and on disk; the rest on the GPU."""
    prepared = bring_up(folder, pod=pod, **flags).prepared
    blocks = [unit for unit in prepared.footprint.units if unit.block is not None]
    devices = {unit.names[0]: ("0", "cpu", "disk")[unit.block % 3] for unit in blocks}
    return {name: devices.get(name, "0") for name in prepared.placement.device_map}


def tokens(up: Up) -> list[int]:
    return up.tokens(PROMPT, max_new_tokens=12)


@torch.inference_mode()
def logits(up: Up) -> torch.Tensor:
    """Return the logits of the second of two forward passes: it reuses memory of the first."""
    up.model(input_ids=IDS.cuda())
    result: torch.Tensor = up.model(input_ids=IDS.cuda()).logits
    return result


def copies_to_the_gpu(up: Up) -> set[str]:
    """Names of a forward pass's copies in CUDA, such as "Memcpy HtoD (Pinned -> Device)".

    `Tensor.is_pinned` is true only of memory that torch has allocated itself.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        logits(up)
        torch.cuda.synchronize()
    return {event.key for event in profile.key_averages() if "HtoD" in event.key}


@pytest.mark.parametrize("architecture", ["bloom", "gpt2", "llama", "llama-tied", "mixtral", "opt"])
def test_a_model_over_gpu_memory_and_disk_gives_the_tokens_of_the_cpu(
    checkpoints: Checkpoints, architecture: str, pod: PodResources, tmp_path: Path
) -> None:
    folder = checkpoints(architecture)
    device_map = spread(folder, pod)
    up = bring_up(
        folder, pod=read_resources(tmp_path), device_map=device_map, offload_folder=str(tmp_path)
    )
    assert set(up.prepared.placement.device_map.values()) == {0, "cpu", "disk"}
    assert tokens(up) == reference(folder, PROMPT)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize(("on_gpu", "in_memory"), [(0, 0), (1, 2), (3, 3), (16, 0)])
@pytest.mark.parametrize("way", [None, Way.COMPUTED], ids=str)
def test_experts_in_three_tiers_give_the_tokens_of_the_cpu(
    mixtures: Checkpoints,
    pod: PodResources,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    on_gpu: int,
    in_memory: int,
    way: Way | None,
) -> None:
    if way is not None:
        monkeypatch.setattr(WayChoice, "begin_pass", lambda self, _: setattr(self, "way", way))

    def with_slots(prepared: Prepared) -> Placement:
        placement = placement_with_slots(prepared, on_gpu)
        experts = tuple(
            replace(layer, host_slots=min(in_memory, layer.count)) for layer in placement.experts
        )
        return replace(placement, experts=experts, host_expert_staging=STAGING)

    folder = mixtures(name)
    up = bring_up(folder, pod=pod, device_map="cuda:0", change_placement=with_slots)
    assert isinstance(up.weights.experts, DeviceExpertCache)
    if way is None:
        assert "Memcpy HtoD (Pinned -> Device)" in copies_to_the_gpu(up)
    assert tokens(up) == reference(folder, PROMPT)
    assert tokens(up) == reference(folder, PROMPT)


def test_no_attention_is_compiled_anew_for_each_length(
    checkpoints: Checkpoints, pod: PodResources
) -> None:
    up = bring_up(checkpoints("llama", dtype=torch.bfloat16), pod=pod, dtype="bfloat16")
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        tokens(up)
        torch.cuda.synchronize()
    kernels = {event.key for event in profile.key_averages()}
    assert kernels
    assert not [name for name in kernels if "cudnn" in name]


@pytest.mark.parametrize("fraction", [1.0, 0.0])
def test_streamed_blocks_give_the_logits_of_resident_ones_bit_for_bit(
    checkpoints: Checkpoints, pod: PodResources, fraction: float
) -> None:
    folder = checkpoints("llama", dtype=torch.bfloat16)
    flags = {"pod": pod, "dtype": "bfloat16", "pinned_memory_fraction": fraction}
    expected = logits(bring_up(folder, device_map="cuda:0", **flags))
    up = bring_up(folder, device_map=spread(folder, pod), **flags)
    loader: Any = up.weights.streaming.loader  # type: ignore[union-attr]
    assert isinstance(loader, DeviceBlockLoader)
    for _ in range(20):
        assert torch.equal(logits(up), expected)
    assert any(isinstance(source, HostBlock) for source in loader.sources)
    copies = copies_to_the_gpu(up)
    assert any("Pinned" in name for name in copies) == bool(fraction), copies


def test_copies_from_page_locked_memory_run_beside_the_thread_and_the_computation() -> None:
    device = torch.device("cuda", 0)
    stream, source = CopyStream(device), AlignedBuffer(512 * MIB)
    page_lock(source)
    into = torch.empty_like(source.tensor, device=device)
    stream.synchronize(stream.copy([into], [source.tensor], stream.record()))
    began = time.perf_counter()
    copied = stream.copy([into], [source.tensor], stream.record())
    enqueued = time.perf_counter() - began
    stream.synchronize(copied)
    assert enqueued < 0.2 * (time.perf_counter() - began)
    began_waiting = stream.record()
    stream.wait(stream.copy([into], [source.tensor], stream.record()), since=began_waiting)
    stream.synchronize(stream.record())
    assert stream.take_stall_seconds() > 0.001  # 512 MiB take more on any link
    del source


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "llama"])
@pytest.mark.parametrize("layout", ["gpu", "spread"])
def test_an_encoder_task_gives_the_answers_of_the_cpu(
    pod: PodResources, tmp_path: Path, architecture: str, layout: str
) -> None:
    task = "sequence_classification"
    folder = make_encoder(tmp_path / "model", architecture, task)
    device_map = "cuda:0" if layout == "gpu" else spread(folder, pod, task=task)
    texts = [{"text": "x" * length} for length in (3, 50, 7, 120)]
    up = bring_up(folder, pod=read_resources(tmp_path), device_map=device_map, task=task)
    on_cpu = bring_up(folder, task=task)
    answers = [ask(one, *texts, return_raw_logits=True) for one in (up, on_cpu)]
    for on_gpu, expected in zip(*answers, strict=True):
        assert on_gpu.label == expected.label
        assert on_gpu.logits == pytest.approx(expected.logits, abs=1e-4)


@pytest.mark.parametrize("device_map", ["auto", "cuda:0", "cpu"])
def test_strategies_and_single_devices_work(
    checkpoints: Checkpoints, device_map: str, pod: PodResources
) -> None:
    folder = checkpoints("llama")
    assert tokens(bring_up(folder, pod=pod, device_map=device_map)) == reference(folder, PROMPT)


def test_a_small_limit_of_gpu_memory_is_kept(checkpoints: Checkpoints, pod: PodResources) -> None:
    folder = checkpoints("llama")
    whole = bring_up(folder, pod=pod, max_concurrency=1).prepared.placement.tier("0").planned
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    max_memory = json.dumps({"0": f"{whole - 1}"})
    up = bring_up(folder, pod=pod, max_memory=max_memory, max_concurrency=1)
    assert up.prepared.placement.tier("cpu").units
    assert tokens(up) == reference(folder, PROMPT)
    workspaces = 96 * MIB  # cuBLAS takes one for each thread; headroom covers them
    planned = up.prepared.placement.tier("0").planned
    assert torch.cuda.max_memory_allocated() - before <= planned + workspaces


@pytest.mark.parametrize("layout", ["gpu", "spread"])
def test_loading_takes_of_memory_what_was_planned(
    checkpoints: Checkpoints, pod: PodResources, tmp_path: Path, layout: str
) -> None:
    folder = checkpoints("llama")
    device_map = "cuda:0" if layout == "gpu" else json.dumps(spread(folder, pod))
    # In a process of its own: here CUDA has been started, which takes half a GiB of main memory.
    code = (
        "import sys; from pathlib import Path; from predictor.pod import read_resources;"
        "from tests.serving import bring_up; folder, device_map, work = sys.argv[1:];"
        "pod = read_resources(Path(work));"
        "bring_up(Path(folder), pod=pod, device_map=device_map, offload_folder=work);"
        "print('up', flush=True); import os; os._exit(0)"
    )
    argv = [sys.executable, "-c", code, str(folder), device_map, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip().endswith("up"), done.stderr
    assert "were planned" not in done.stderr  # warnings are printed without any set-up of logging


def test_devices_are_read_as_the_driver_reports_them() -> None:
    accelerators = read_accelerators()
    assert len(accelerators) == torch.cuda.device_count()
    free, total = torch.cuda.mem_get_info(0)
    assert accelerators[0].total == total
    assert abs(accelerators[0].free - free) < 512 * MIB
