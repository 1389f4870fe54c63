"""A model bigger than its GPU: offloaded blocks are streamed from main memory for every token.

The model is a random Llama of 1.1 billion parameters in bfloat16 (2.2 GB), of which the GPU may
hold `--budget`. The predictor plans the place of each block, and Accelerate gets the same map. Each
runs alone in a fresh process, in rounds; ratios are formed within a round. The limit of a forward
pass is the time to copy the offloaded blocks from page-locked memory, probed by the same process.
Needs a CUDA device, and enough main memory for the model twice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint import make
from contestants import (
    Generate,
    Meter,
    accelerate_model,
    bring_up,
    engine_generates,
    transformers_generates,
)
from measuring import CannotMeasure, add_path_flags, finish, machine, run, table
from serving import LLAMA, TINY
from streamers import prompts

TARGETS = {"x Accelerate, the same map": 4.0, "of the link": 0.85}
"""Least speed-up over Accelerate; least fraction of the page-locked bandwidth."""

_PROBED = 2**28
"""Bytes of one copy that probes the link."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or one contestant of it, and returns the exit code."""
    flags = _parser().parse_args(arguments)
    if flags.contestant is not None:
        return _contest(flags)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--budget", help="GPU memory to plan for (default: 800MiB; with --quick 48MiB)")
    add("--tokens", type=int, default=32, help="new tokens of each sequence")
    add("--sequences", type=int, default=1, help="at one time")
    add("--rounds", type=int, default=3, help="runs of each contestant")
    add("--quick", action="store_true", help="a tiny model; proves nothing")
    add("--contestant", choices=("predictor", "accelerate"), help=argparse.SUPPRESS)
    add("--model", type=Path, help=argparse.SUPPRESS)
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: There is no GPU, or a contestant did not do the measured work.
    """
    before = machine()
    flags.budget = flags.budget or ("48MiB" if flags.quick else "800MiB")
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="gpu-") as work:
        model = Path(work)
        make(model, TINY if flags.quick else LLAMA)
        rounds = [
            {name: _run(name, model, flags) for name in ("predictor", "accelerate")}
            for _ in range(flags.rounds)
        ]
    ratios = [one["accelerate"]["seconds"] / one["predictor"]["seconds"] for one in rounds]
    of_link = [_of_the_link(one["predictor"]) for one in rounds]
    measured = dict(
        zip(TARGETS, (statistics.median(ratios), statistics.median(of_link)), strict=True)
    )
    result = {"rounds": rounds, "measured": measured, "machine": [before, machine()]}
    print(_report(result))
    replies = {tuple(run["tokens"]) for one in rounds for run in one.values()}
    failure = None if len(replies) == 1 else "The contestants gave different replies to one prompt."
    return result | {"failure": failure}


def _run(name: str, model: Path, flags: argparse.Namespace) -> dict[str, Any]:
    argv = [sys.executable, str(Path(__file__)), "--contestant", name, "--model", str(model)]
    argv += ["--budget", flags.budget, f"--tokens={flags.tokens}", f"--sequences={flags.sequences}"]
    done = run(argv, gpus=True)
    if done.returncode != 0:
        raise CannotMeasure(f"{name} ended with status {done.returncode}: {done.last_words}")
    reported: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if name == "predictor" and not reported["offloaded_bytes"]:
        raise CannotMeasure("No block is offloaded to main memory: give a smaller --budget.")
    return reported


def _of_the_link(run: Mapping[str, Any]) -> float:
    fraction: float = run["offloaded_bytes"] / run["bytes_per_second"] / run["seconds"]
    return fraction


def _report(result: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{1000 * run['seconds']:.1f}", run["device"]]
        for one in result["rounds"]
        for name, run in one.items()
    ]
    lines = [table(["contestant", "ms/pass", "device"], rows), ""]
    for (name, target), value in zip(TARGETS.items(), result["measured"].values(), strict=True):
        verdict = "reached" if value >= target else "MISSED"
        lines.append(f"{name}: {value:.2f}, target >= {target:g}: {verdict}")
    ours = result["rounds"][0]["predictor"]
    lines.append(
        f"{ours['offloaded_bytes'] / 1e9:.2f} GB are offloaded to main memory; the link copies "
        f"{ours['bytes_per_second'] / 1e9:.1f} GB/s. "
        f"machine: {result['machine'][0]} at the start, {result['machine'][1]} at the end."
    )
    return "\n".join(lines)


def _contest(flags: argparse.Namespace) -> int:
    import torch

    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 1
    where = flags.model / "map.json"
    generate, more = (
        _predictor(flags, where) if flags.contestant == "predictor" else _accelerate(flags, where)
    )
    # Once untimed: cuDNN's attention, which Accelerate's model uses, compiles for each new length.
    generate(prompts(flags.sequences), flags.tokens, lambda: None)
    meter = Meter()
    tokens = generate(prompts(flags.sequences), flags.tokens, meter.mark)[0]
    steps = meter.per_token()[1:]
    seconds = statistics.median(one["seconds"] for one in steps)
    reported = {"seconds": seconds, "tokens": tokens, "device": torch.cuda.get_device_name(0)}
    print("\n" + json.dumps(reported | more))
    return 0


def _predictor(flags: argparse.Namespace, where: Path) -> tuple[Generate, dict[str, Any]]:
    """Load with the predictor, and write its device map to `where`."""
    given: dict[str, Any] = {"model_dir": flags.model, "max_model_len": 256}
    given["max_concurrency"] = flags.sequences
    given["max_memory"] = json.dumps({"0": flags.budget})
    _, prepared, started = bring_up(given)
    placement = prepared.placement
    where.write_text(json.dumps(placement.device_map))
    units, main_memory = prepared.footprint.units, placement.tier("cpu").weights
    offloaded = sum(
        unit.weights
        for unit in units
        if unit.is_block and placement.device_map[unit.names[0]] == "cpu"
    )
    if not placement.by_block or offloaded < main_memory or placement.tier("disk").units:
        raise SystemExit("not all offloaded weights are blocks in main memory: change --budget")
    return engine_generates(started.engine), {
        "offloaded_bytes": offloaded,
        "bytes_per_second": _probe(),
    }


def _accelerate(flags: argparse.Namespace, where: Path) -> tuple[Generate, dict[str, Any]]:
    device_map = json.loads(where.read_text())
    model = accelerate_model(flags.model, device_map=device_map)
    generate = transformers_generates(model)
    return generate, {}


def _probe() -> float:
    """Return the bytes per second of large copies from page-locked memory to the GPU."""
    import torch

    source = torch.empty(_PROBED, dtype=torch.uint8, pin_memory=True)
    into = torch.empty_like(source, device="cuda")
    speeds = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        into.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        speeds.append(_PROBED / (time.perf_counter() - began))
    return max(speeds)


if __name__ == "__main__":
    sys.exit(main())
