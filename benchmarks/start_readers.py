"""One reader of `start.py`, run as its own process: all tensors of a checkpoint in main memory.

Prints the seconds, without imports. Each tensor ends up in memory of its own, as when it stays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Files = list[Path]


def _predictor(files: Files) -> object:
    import contextlib

    from predictor.weights.direct_io import AlignedBuffer
    from predictor.weights.extents import BlockExtent, FileSegment, identify_file, pages
    from predictor.weights.parallel_reader import ParallelReader

    kept = []
    with contextlib.closing(ParallelReader()) as reader:
        pending = []
        for file in files:
            length = pages(file.stat().st_size)
            segment = FileSegment(file, 0, length, 0, identify_file(file.stat()))
            buffer = AlignedBuffer(length, touch=False)
            kept.append(buffer)
            pending += reader.read_block(
                BlockExtent(file.name, (segment,), (), "checkpoint"), buffer
            )
        for read in pending:
            read.result()
    return kept


def _safetensors(files: Files) -> object:
    from safetensors import safe_open

    kept = []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            kept += [opened.get_tensor(name).clone() for name in opened.keys()]  # noqa: SIM118
    return kept


def _runai(files: Files) -> object:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(file) for file in files])
        return [tensor.clone() for _, tensor in streamer.get_tensors()]


def _fastsafetensors(files: Files) -> object:
    from fastsafetensors import fastsafe_open

    paths = [str(file) for file in files]
    with fastsafe_open(filenames=paths, nogds=True, device="cpu", debug_log=False) as opened:
        return [opened.get_tensor(name).clone() for name in opened.keys()]  # noqa: SIM118


READERS: Mapping[str, Callable[[Files], object]] = {
    "predictor": _predictor,
    "safetensors": _safetensors,
    "runai-model-streamer": _runai,
    "fastsafetensors": _fastsafetensors,
}


def main() -> None:
    """Read, and print the seconds."""
    name, folder = sys.argv[1:]
    files = sorted(Path(folder).glob("*.safetensors"))
    import torch

    torch.set_num_threads(1)
    READERS[name](files[:1])  # imports, and what a library sets up once
    began = time.perf_counter()
    kept = READERS[name](files)
    print(time.perf_counter() - began)
    del kept


if __name__ == "__main__":
    main()
