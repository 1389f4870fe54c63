"""One contestant of `offload.py`, run as a process of its own inside a memory cgroup.

Prints one JSON object: what a pass over the weights took at 1 and at more sequences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from contestants import Meter, own_bytes

_PROMPT = 8
Decode = Callable[[int, int, Callable[[], None]], list[list[int]]]
"""Gives that many sequences that many tokens, and calls back after each token of the first."""


def prompt(index: int) -> list[int]:
    """Returns the prompt of a sequence; all are as long."""
    return [5 + (7 * index + 3 * place) % 500 for place in range(_PROMPT)]


def _auto(checkpoint: Path, _: argparse.Namespace) -> tuple[Decode, Any]:
    return _accelerate(checkpoint, device_map="auto")


def _max_memory(checkpoint: Path, flags: argparse.Namespace) -> tuple[Decode, Any]:
    import transformers

    _ = transformers.AutoModelForCausalLM
    left = flags.limit - own_bytes()
    return _accelerate(checkpoint, device_map="auto", max_memory={"cpu": left})


def _all_disk(checkpoint: Path, _: argparse.Namespace) -> tuple[Decode, Any]:
    return _accelerate(checkpoint, device_map={"": "disk"})


def _accelerate(checkpoint: Path, **options: Any) -> tuple[Decode, Any]:
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    folder = tempfile.mkdtemp(dir=checkpoint.parent)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype="auto", offload_folder=folder, local_files_only=True, **options
    )

    class Marking(StoppingCriteria):
        def __init__(self, mark: Callable[[], None]) -> None:
            self._mark = mark

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
            self._mark()
            return input_ids.new_zeros(len(input_ids)).bool()

    def decode(sequences: int, tokens: int, mark: Callable[[], None]) -> list[list[int]]:
        ids = torch.tensor([prompt(index) for index in range(sequences)])
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([Marking(mark)]),
            )
        told: list[list[int]] = found[:, _PROMPT:].tolist()
        return told

    return decode, model


def _predictor(checkpoint: Path, flags: argparse.Namespace) -> tuple[Decode, Any]:
    from predictor import pod, startup
    from predictor.engine.sampling import Sampling
    from predictor.settings import read_settings
    from predictor.weights.progress import Progress

    given: dict[str, Any] = {"model_dir": checkpoint, "max_model_len": 256, "max_concurrency": 1}
    if flags.store:
        given |= {"offload_folder": flags.store, "offload_store": "always"}
    if flags.budget:
        given["max_memory"] = json.dumps({"cpu": flags.budget})
    settings = read_settings(given)
    resources = pod.read(settings.offload_folder)
    prepared = startup.prepare(settings, startup.open_checkpoint(settings), resources)
    up = startup.bring_up(settings, prepared, Progress())
    engine: Any = up.task._engine  # tokens, and when each came, are seen at the engine only

    class Listening:
        def __init__(self, mark: Callable[[], None]) -> None:
            self.tokens: list[int] = []
            self.outcome: Any = None
            self.ended = threading.Event()
            self._mark = mark

        def token(self, token: Any) -> bool:
            self.tokens.append(token.id)
            self._mark()
            return False

        def end(self, outcome: Any) -> None:
            self.outcome = outcome
            self.ended.set()

    def decode(sequences: int, tokens: int, mark: Callable[[], None]) -> list[list[int]]:
        listening = [Listening(mark if index == 0 else lambda: None) for index in range(sequences)]
        for index, listener in enumerate(listening):
            engine.submit(prompt(index), Sampling(tokens), listener)
        for listener in listening:
            listener.ended.wait()
            if isinstance(listener.outcome, Exception):
                raise listener.outcome
        return [listener.tokens for listener in listening]

    return decode, up


CONTESTANTS = {
    "auto": _auto,
    "max_memory": _max_memory,
    "all disk": _all_disk,
    "predictor": _predictor,
}


def main() -> None:
    """Runs one contestant and prints what it cost."""
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
    decode, loaded = CONTESTANTS[flags.contestant](flags.checkpoint, flags)
    ready = time.perf_counter() - began
    decode(1, 2, lambda: None)  # what transformers puts off until the first pass
    streaming = getattr(getattr(loaded, "weights", None), "streaming", None)
    levels = {
        sequences: _level(decode, sequences, flags.tokens, streaming)
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


def _level(decode: Decode, sequences: int, tokens: int, streaming: Any) -> dict[str, Any]:
    meter, stalls = Meter(), []

    def mark() -> None:
        meter.mark()
        stalls.append(0.0 if streaming is None else streaming._metrics.stalls)

    told = decode(sequences, tokens, mark)
    passes = meter.per_token()[1:]  # the first that are told may come after several passes
    waited = [after - before for before, after in pairwise(stalls)][1:]
    return {
        "tokens": told,
        "seconds": statistics.median(one["seconds"] for one in passes),
        "read_bytes": statistics.median(one["read_bytes"] for one in passes),
        "stall_seconds": statistics.median(waited),
    }


def probe(up: Any) -> dict[str, float]:
    """Returns the device's own bandwidth over the streamed blocks, and the bytes that stay."""
    from predictor.weights.reading import Buffer, opened_files

    blocks = up.weights.streaming._blocks
    buffer = Buffer(max(block.size for block in blocks))
    speeds = []
    with opened_files() as files:
        for _ in range(2):
            began = time.perf_counter()
            for block in blocks:
                files.read(block, buffer)
            speeds.append(sum(block.size for block in blocks) / (time.perf_counter() - began))
    resident = sum(p.nbytes for p in up.weights.model.parameters() if p.device.type == "cpu")
    return {
        "bytes_per_second": max(speeds),
        "streamed_bytes": sum(block.size for block in blocks),
        "resident_bytes": resident,
    }


if __name__ == "__main__":
    main()
