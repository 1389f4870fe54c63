"""One contestant of `contrast.py`, run as a process of its own inside a memory cgroup.

Prints one JSON object. "Ready" is the same for all: loaded, and one reply of two tokens given,
since transformers' loading alone reads nothing (the first forward pass does).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPT = (5, 17, 3, 42, 8, 29, 11, 2)
_WARM_UP = (0, 0, 0, 0)
Generate = Callable[[Sequence[int], int, Callable[[], None]], list[int]]


@dataclass(slots=True)
class Meter:
    """Where time and disk stood after each token."""

    marks: list[tuple[float, int, float, int]] = field(default_factory=list)

    def mark(self) -> None:
        """Notes wall time, bytes read from disk, CPU time and major page faults so far."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        self.marks.append((time.perf_counter(), _read_bytes(), time.process_time(), faults))

    def per_token(self) -> list[dict[str, float]]:
        """Returns what each token cost."""
        keys = ("seconds", "read_bytes", "cpu_seconds", "major_faults")
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [
            {key: new - old for key, old, new in zip(keys, before, after, strict=True)}
            for before, after in pairs
        ]


def _read_bytes() -> int:
    return int(dict(line.split(": ") for line in Path("/proc/self/io").open())["read_bytes"])


def own_bytes() -> int:
    """Returns the anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024


def _predictor(checkpoint: Path, _: int) -> tuple[Generate, Any, dict[str, Any]]:
    """The predictor: measures its pod, plans, loads, and serves with its own engine."""
    from predictor import pod, startup
    from predictor.engine.sampling import Sampling
    from predictor.placement.report import as_json
    from predictor.settings import read_settings
    from predictor.weights.progress import Progress

    settings = read_settings({"model_dir": checkpoint, "max_model_len": 128, "max_concurrency": 1})
    resources = pod.read(settings.offload_folder)
    prepared = startup.prepare(settings, startup.open_checkpoint(settings), resources)
    task = startup.bring_up(settings, prepared, Progress()).task
    engine = task._engine  # tokens, and when each came, are seen at the engine only

    class Listening:
        """Notes each token of one sequence."""

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

    def generate(prompt: Sequence[int], count: int, mark: Callable[[], None]) -> list[int]:
        listening = Listening(mark)
        engine.submit(prompt, Sampling(count), listening)
        listening.ended.wait()
        if isinstance(listening.outcome, Exception):
            raise listening.outcome
        return listening.tokens

    facts = {"available": resources.memory.available, "tiers": as_json(prepared.placement)["tiers"]}
    return generate, engine._runner._model, facts


def _plain(checkpoint: Path, _: int) -> tuple[Generate, Any, dict[str, Any]]:
    """What everybody writes: transformers looks at the memory of the host."""
    return _transformers(checkpoint, None)


def _by_hand(checkpoint: Path, limit: int) -> tuple[Generate, Any, dict[str, Any]]:
    """A careful user: the limit of the pod less what this process holds after its imports."""
    import transformers

    _ = transformers.AutoModelForCausalLM
    return _transformers(checkpoint, {"cpu": limit - own_bytes()})


def _transformers(
    checkpoint: Path, max_memory: dict[str, int] | None
) -> tuple[Generate, Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype="auto",
        device_map="auto",
        max_memory=dict(max_memory) if max_memory else None,
        offload_folder=tempfile.mkdtemp(dir=checkpoint.parent),
        local_files_only=True,
    )

    class Marking(StoppingCriteria):
        def __init__(self, mark: Callable[[], None]) -> None:
            self._mark = mark

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
            self._mark()
            return input_ids.new_zeros(len(input_ids)).bool()

    def generate(prompt: Sequence[int], count: int, mark: Callable[[], None]) -> list[int]:
        return _generate(model, prompt, count, StoppingCriteriaList([Marking(mark)]))

    return generate, model, {"max_memory": max_memory}


def _generate(model: Any, prompt: Sequence[int], count: int, criteria: Any) -> list[int]:
    import torch

    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            stopping_criteria=criteria,
        )
    return [int(token) for token in found[0, len(prompt) :]]


CONTESTANTS = {"predictor": _predictor, "plain": _plain, "by-hand": _by_hand}


def main() -> None:
    """Runs one contestant and prints what it cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    flags = parser.parse_args()
    import torch
    import transformers

    _ = torch.Tensor, transformers.PreTrainedModel
    began = time.perf_counter()
    generate, model, facts = CONTESTANTS[flags.contestant](flags.checkpoint, flags.limit)
    loaded = time.perf_counter()
    if flags.contestant != "predictor":  # whose loading includes the same warm-up
        generate(_WARM_UP, 2, lambda: None)
    ready = time.perf_counter()
    meter = Meter()
    meter.mark()
    tokens = generate(PROMPT, flags.tokens, meter.mark)
    result = {
        "group": Path("/proc/self/cgroup").read_text(),
        "load_seconds": loaded - began,
        "ready_seconds": ready - began,
        "tokens": tokens,
        "per_token": meter.per_token(),
        "on_disk": sum(p.nbytes for p in model.parameters() if p.device.type == "meta"),
        "weights": sum(p.nbytes for p in model.parameters()),
        "facts": facts,
    }
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
