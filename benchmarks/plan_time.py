"""Processor time to plan each published shape, and wrappers of text models.

Plans the models of ``tests/profiling/published.jsonl`` from their config.json alone, each at its
default length, and some wrappers of vision and audio models with transformers' default config. The
time is that of planning in a process that has imported what it needs, with the modules of the model
itself. One that takes longer than the target, or cannot be planned, fails the benchmark.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import ROOT, CannotMeasure, finish, machine, table

TARGET_SECONDS = 5.0
PUBLISHED = ROOT / "tests" / "profiling" / "published.jsonl"
WRAPPERS = ("gemma3n", "gemma4", "llama4", "mllama", "qwen3_5_moe", "mistral3")
POD = ("8x80GiB", "4TiB", "8TiB")
_SHOWN = 12
"""How many of the slowest are in the table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", help="names of shapes; all otherwise")
    parser.add_argument("--target", type=float, default=TARGET_SECONDS, help="processor seconds")
    parser.add_argument("--json", type=Path, help="the file to write the numbers to")
    flags = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    return finish(lambda: measure(flags.models, flags.target), flags.json)


def measure(models: Sequence[str] | None, target: float) -> dict[str, Any]:
    """Return all numbers, after printing the largest.

    Raises:
        CannotMeasure: There is no such shape, or a model cannot be planned.
    """
    before, shapes = machine(), dict(_shapes())
    unknown = set(models or ()) - shapes.keys()
    if unknown:
        raise CannotMeasure(f"There is no shape {min(unknown)}.")
    chosen = models or list(shapes)
    _plan(next(iter(shapes)), next(iter(shapes.values())))  # imports what all need
    seconds = {name: _plan(name, shapes[name]) for name in chosen}
    slowest = sorted(seconds, key=lambda name: -seconds[name])
    rows = [(name, f"{seconds[name]:.2f}") for name in slowest[:_SHOWN]]
    print(f"The slowest of {len(seconds)} shapes; target {target:.1f} processor seconds\n")
    print(table(("shape", "CPU s"), rows))
    print(f"\nmachine: {before} at the start, {machine()} at the end")
    late = [name for name in slowest if seconds[name] > target]
    failure = f"Planning took more than {target} processor seconds for {', '.join(late)}."
    return {"target": target, "seconds": seconds, "failure": failure if late else None}


def _shapes() -> Iterator[tuple[str, Mapping[str, Any]]]:
    from transformers import AutoConfig

    for line in PUBLISHED.read_text().splitlines():
        row = json.loads(line)
        yield row["name"], row["config"]
    for kind in WRAPPERS:
        yield kind, AutoConfig.for_model(kind).to_dict()


def _plan(name: str, config: Mapping[str, Any]) -> float:
    """Return the processor seconds of a plan."""
    from predictor import startup
    from predictor.errors import PredictorError
    from predictor.pod.stated import stated_resources
    from predictor.settings import read_settings

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        settings = read_settings(
            {"model_dir": Path(folder), "max_concurrency": 1, "task": "text_generation"}
        )
        began = time.process_time()
        try:
            checkpoint = startup.open_checkpoint(settings, needs_weights=False)
            startup.prepare(settings, checkpoint, stated_resources(*POD))
        except PredictorError as error:
            raise CannotMeasure(f"{name} cannot be planned: {error}") from None
        return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
