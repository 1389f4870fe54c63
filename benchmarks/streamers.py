"""One contestant of `offload.py`, run as its own process inside a memory cgroup.

Prints one JSON object: the cost of a forward pass for each number of sequences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from contestants import (
    Generate,
    Meter,
    accelerate_model,
    bring_up,
    engine_generates,
    memory_left,
    transformers_generates,
)

_PROMPT = 8


def prompts(count: int) -> list[list[int]]:
    """Return so many different prompts of equal length."""
    return [
        [5 + (7 * index + 3 * place) % 500 for place in range(_PROMPT)] for index in range(count)
    ]


def _auto(checkpoint: Path, _: argparse.Namespace) -> tuple[Generate, Any]:
    return _accelerate(checkpoint, device_map="auto")


def _max_memory(checkpoint: Path, flags: argparse.Namespace) -> tuple[Generate, Any]:
    return _accelerate(checkpoint, device_map="auto", max_memory=memory_left(flags.limit))


def _all_disk(checkpoint: Path, _: argparse.Namespace) -> tuple[Generate, Any]:
    return _accelerate(checkpoint, device_map={"": "disk"})


def _accelerate(checkpoint: Path, **options: Any) -> tuple[Generate, Any]:
    model = accelerate_model(checkpoint, **options)
    return transformers_generates(model), model


def _predictor(checkpoint: Path, flags: argparse.Namespace) -> tuple[Generate, Any]:
    given: dict[str, Any] = {"model_dir": checkpoint, "max_model_len": 256, "max_concurrency": 1}
    if flags.store:
        given |= {"offload_folder": flags.store, "offload_store": "always"}
    if flags.budget:
        given["max_memory"] = json.dumps({"cpu": flags.budget})
    _, _, started = bring_up(given)
    return engine_generates(started.engine), started


CONTESTANTS = {
    "auto": _auto,
    "max_memory": _max_memory,
    "all disk": _all_disk,
    "predictor": _predictor,
}


def main() -> None:
    """Run one contestant and print its cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--sequences", type=int, nargs="+", required=True)
    parser.add_argument("--budget", help="main memory that the predictor plans for")
    parser.add_argument("--store", help="the predictor's offload folder")
    flags = parser.parse_args()
    import torch
    import transformers

    _ = torch.Tensor, transformers.PreTrainedModel
    began = time.perf_counter()
    generate, loaded = CONTESTANTS[flags.contestant](flags.checkpoint, flags)
    ready = time.perf_counter() - began
    generate(prompts(1), 2, lambda: None)  # transformers defers work to the first forward pass
    streaming = getattr(getattr(loaded, "weights", None), "streaming", None)
    levels = {
        sequences: _level(generate, sequences, flags.tokens, streaming)
        for sequences in flags.sequences
    }
    result = {
        "group": Path("/proc/self/cgroup").read_text(),
        "ready_seconds": ready,
        "levels": levels,
        "probe": None if streaming is None else probe(loaded),
    }
    if streaming is not None:
        loaded.weights.release()
    print("\n" + json.dumps(result))


def _level(generate: Generate, sequences: int, tokens: int, streaming: Any) -> dict[str, Any]:
    meter, stalls = Meter(), []

    def mark() -> None:
        meter.mark()
        stalls.append(0.0 if streaming is None else streaming.metrics.stall_seconds)

    replies = generate(prompts(sequences), tokens, mark)
    steps = meter.per_token()[1:]  # the first token may take several forward passes
    waited = [after - before for before, after in pairwise(stalls)][1:]
    return {
        "tokens": replies,
        "seconds": statistics.median(one["seconds"] for one in steps),
        "read_bytes": statistics.median(one["read_bytes"] for one in steps),
        "stall_seconds": statistics.median(waited),
    }


def probe(up: Any) -> dict[str, float]:
    """Return the device's own bandwidth over the streamed blocks, and the resident bytes."""
    from predictor.placement.buffers import BOUNCE_BUFFER

    blocks = up.weights.streaming.loader.blocks
    resident = sum(p.nbytes for p in up.weights.model.parameters() if p.device.type == "cpu")
    pieces = (BOUNCE_BUFFER, max(block.size for block in blocks))
    return {
        "bytes_per_second": max(_speed(blocks, piece) for piece in pieces for _ in range(2)),
        "streamed_bytes": sum(block.size for block in blocks),
        "resident_bytes": resident,
    }


def _speed(blocks: Sequence[Any], piece: int) -> float:
    """Return the bytes per second of direct reads of at most `piece` bytes.

    If the host copies the data, a buffer that fits the processor's cache is faster.
    """
    from predictor.weights.direct_io import AlignedBuffer, open_block_reader
    from predictor.weights.extents import split_segments

    buffer = AlignedBuffer(piece)
    began = time.perf_counter()
    with open_block_reader() as files:
        for block in blocks:
            for segment in split_segments(block.segments, piece):
                files.read_segment(replace(segment, at=0), buffer)
    return sum(block.size for block in blocks) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
