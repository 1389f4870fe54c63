"""The baseline of `serving.py`: transformers' own `generate`, one prompt at a time.

Runs as its own process, reads prompts as lists of token ids from a file and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from load import await_quiet, others_seconds

from predictor.pod.memory import CGROUP_ROOT, PROC
from predictor.pod.processors import read_processors


class Times:
    """A streamer that records the time of each token."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def put(self, _: Any) -> None:
        """Record the time. Called with the prompt, and then with each token."""
        self.marks.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing. Called after the last token."""


def main() -> None:
    """Generate replies and print the cost of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("work", type=Path, help="JSON: prompts and options")
    flags = parser.parse_args()
    work = json.loads(flags.work.read_text())
    import torch

    processors = read_processors(cgroup_root=CGROUP_ROOT, proc=PROC)
    torch.set_num_threads(min(processors, torch.get_num_threads()))  # as the predictor does
    model = _load(flags.checkpoint, work["device_map"])
    _generate(model, work["prompts"][0], 2)  # warm, as the predictor is when it is ready
    await_quiet(work["wait"])
    began, others = time.perf_counter(), others_seconds()
    replies = [_generate(model, prompt, work["new_tokens"]) for prompt in work["prompts"]]
    seconds = time.perf_counter() - began
    others = others_seconds() - others
    on_disk = sum(p.nbytes for p in model.parameters() if p.device.type == "meta")
    facts = {"threads": torch.get_num_threads(), "on_disk": on_disk, "seconds": seconds}
    facts["others_seconds"] = others
    print("\n" + json.dumps(facts | {"replies": replies}))


def _load(checkpoint: Path, device_map: Mapping[str, str]) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype="auto", device_map=dict(device_map), local_files_only=True
    )
    return model.eval()


def _generate(model: Any, prompt: Sequence[int], count: int) -> dict[str, Any]:
    import torch

    ids, times = torch.tensor([list(prompt)]), Times()
    began = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            streamer=times,
        )
    marks = times.marks[1:]
    gaps = [after - before for before, after in pairwise(marks)]
    return {"first": marks[0] - began, "gaps": gaps, "tokens": len(marks)}


if __name__ == "__main__":
    main()
