"""One contestant of `contrast.py`, run as its own process inside a memory cgroup.

Prints one JSON object. "Ready" means the same for all: the model is loaded and has given one reply
of two tokens. Loading with transformers reads no weights; the first forward pass does.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPT = (5, 17, 3, 42, 8, 29, 11, 2)
_WARM_UP = (0, 0, 0, 0)
Generate = Callable[[Sequence[Sequence[int]], int, Callable[[], None]], list[list[int]]]
"""Continues prompts by so many tokens, and calls back after each token of the first prompt."""


@dataclass(slots=True)
class Meter:
    """The time and the bytes read after each token."""

    marks: list[tuple[float, int, float, int]] = field(default_factory=list)

    def mark(self) -> None:
        """Record wall time, bytes read from disk, CPU time and major page faults so far."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        self.marks.append((time.perf_counter(), _read_bytes(), time.process_time(), faults))

    def per_token(self) -> list[dict[str, float]]:
        """Return the cost of each token."""
        keys = ("seconds", "read_bytes", "cpu_seconds", "major_faults")
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [
            {key: new - old for key, old, new in zip(keys, before, after, strict=True)}
            for before, after in pairs
        ]


def _read_bytes() -> int:
    return int(dict(line.split(": ") for line in Path("/proc/self/io").open())["read_bytes"])


class Listening:
    """Records each token of one sequence in the predictor's engine."""

    def __init__(self, mark: Callable[[], None]) -> None:
        self.tokens: list[int] = []
        self.outcome: Any = None
        self._ended = threading.Event()
        self._mark = mark

    def on_token(self, token: Any) -> bool:
        """Take a token; the sequence goes on."""
        self.tokens.append(token.id)
        self._mark()
        return False

    def on_finish(self, outcome: Any) -> None:
        """Take the end."""
        self.outcome = outcome
        self._ended.set()

    def wait(self) -> list[int]:
        """Return the tokens when there are all; raises what ended the sequence otherwise."""
        self._ended.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.tokens


def bring_up(given: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Start the predictor; return the pod's resources, the prepared start and the started model."""
    from predictor import pod, startup
    from predictor.settings import read_settings
    from predictor.weights.progress import Progress

    settings = read_settings(given)
    resources = pod.read_resources(settings.offload_folder)
    prepared = startup.prepare(settings, startup.open_checkpoint(settings), resources)
    return resources, prepared, startup.bring_up(settings, prepared, Progress())


def engine_generates(engine: Any) -> Generate:
    """Return a function that continues prompts with the predictor's engine."""
    from predictor.engine.generation.sampling_params import SamplingParams

    def generate(
        prompts: Sequence[Sequence[int]], count: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        listening = [Listening(mark if index == 0 else _ignore) for index in range(len(prompts))]
        for prompt, listener in zip(prompts, listening, strict=True):
            engine.submit(prompt, SamplingParams(count), listener)
        return [listener.wait() for listener in listening]

    return generate


def _ignore() -> None:
    """Do nothing. Called for the tokens of all sequences except the first."""


def _predictor(checkpoint: Path, _: int) -> tuple[Generate, Any, dict[str, Any]]:
    """Load with the predictor, which inspects its pod and plans, and generate with its engine."""
    from predictor.placement.report import as_json

    given = {"model_dir": checkpoint, "max_model_len": 128, "max_concurrency": 1}
    resources, prepared, started = bring_up(given)
    engine = started.engine
    facts = {"available": resources.memory.available, "tiers": as_json(prepared.placement)["tiers"]}
    return engine_generates(engine), engine.runner.model, facts


def _plain(checkpoint: Path, _: int) -> tuple[Generate, Any, dict[str, Any]]:
    """Load with transformers' defaults, which use the memory of the host."""
    return _transformers(checkpoint, None)


def _by_hand(checkpoint: Path, limit: int) -> tuple[Generate, Any, dict[str, Any]]:
    """Load with a ``max_memory`` of the pod's limit less this process's memory after imports."""
    return _transformers(checkpoint, memory_left(limit))


def memory_left(limit: int) -> dict[str, int]:
    """Return ``max_memory`` for a limit less this process's memory after its imports."""
    import transformers

    from predictor.pod.memory import read_own_anonymous

    _ = transformers.AutoModelForCausalLM
    return {"cpu": limit - read_own_anonymous()}


def _transformers(
    checkpoint: Path, max_memory: dict[str, int] | None
) -> tuple[Generate, Any, dict[str, Any]]:
    given = dict(max_memory) if max_memory else None
    model = accelerate_model(checkpoint, device_map="auto", max_memory=given)
    return transformers_generates(model), model, {"max_memory": max_memory}


def accelerate_model(checkpoint: Path, **options: Any) -> Any:
    """Return the model as placed by transformers and Accelerate alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype="auto",
        offload_folder=tempfile.mkdtemp(dir=checkpoint.parent),
        local_files_only=True,
        **options,
    )


def transformers_generates(model: Any) -> Generate:
    """Return a function that continues prompts of one length with transformers, as one batch."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Marking(StoppingCriteria):
        def __init__(self, mark: Callable[[], None]) -> None:
            self._mark = mark

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
            self._mark()
            return input_ids.new_zeros(len(input_ids)).bool()

    def generate(
        prompts: Sequence[Sequence[int]], count: int, mark: Callable[[], None]
    ) -> list[list[int]]:
        where = "cpu" if model.device.type == "meta" else model.device  # meta: all on disk
        ids = torch.tensor([list(prompt) for prompt in prompts], device=where)
        with torch.inference_mode():
            sequences = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([Marking(mark)]),
            )
        replies: list[list[int]] = sequences[:, ids.shape[1] :].tolist()
        return replies

    return generate


CONTESTANTS = {"predictor": _predictor, "plain": _plain, "by-hand": _by_hand}


def main() -> None:
    """Run one contestant and print its cost."""
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
    if flags.contestant != "predictor":  # loading the predictor includes the same warm-up
        generate([_WARM_UP], 2, _ignore)
    ready = time.perf_counter()
    meter = Meter()
    meter.mark()
    (tokens,) = generate([PROMPT], flags.tokens, meter.mark)
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
