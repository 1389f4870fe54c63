"""Time and memory of `predictor plan` for the largest models.

Plans BLOOM-176B, Llama-3-70B and the large mixtures of experts from their config.json alone,
unquantised, with experts read one by one where they can be. Every round starts two fresh
processes for each model: the command as users type it, and one that times its imports and its
planning separately. The ratio between them is the result; seconds depend on the machine and its
load. A wrong plan fails the benchmark: weights or KV cache that differ from the shapes', a tier
over its budget, a block left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import (
    CannotMeasure,
    Finished,
    compile_modules,
    finish,
    machine,
    mib,
    run,
    table,
)
from shapes import RESOURCES, SHAPES, Stated

TARGET_SECONDS = 5.0
TARGET_BYTES = 2**30
_BUFFERS = 2**20
"""Bytes of computed buffers (rotary frequencies) that may come on top of the weights."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind; the median")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--python", default=sys.executable, help="the interpreter to measure")
    parser.add_argument("--json", type=Path, help="the file to write the numbers to")
    parser.add_argument("--in-child", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.in_child is not None:
        print(json.dumps(time_parts(flags.in_child)))
        return 0
    return finish(lambda: measure(flags.models, flags.rounds, flags.python), flags.json)


def measure(models: Sequence[str], rounds: int, python: str) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A process failed, or a plan is wrong.
    """
    before = machine()
    rounds_by_model: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    compile_modules([python, "-c", "import torch, transformers, predictor.cli, predictor.startup"])
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in models:
                rounds_by_model[name].append(_round(Path(folder), name, python))
    result = {name: _medians(several) for name, several in rounds_by_model.items()}
    print(_report(result, rounds), f"\nmachine: {before} at the start, {machine()} at the end")
    return {
        "rounds": rounds,
        "target": {"seconds": TARGET_SECONDS, "bytes": TARGET_BYTES},
        "models": result,
    }


def _round(folder: Path, name: str, python: str) -> dict[str, Any]:
    """Run both processes for one model and check every plan that they print."""
    path = folder / name / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(SHAPES[name].config))
    stated = RESOURCES[0]
    size = ["--gpus", str(stated.gpus), "--memory", stated.memory, "--disk", stated.disk]
    command = [python, "-m", "predictor", "plan", str(path.parent), *size, "--output", "json"]
    command += ["--max_concurrency", "1"]  # the expected KV cache is for one sequence
    command += ["--expert_slots", "auto"]
    whole = run(command)
    check(name, stated, _json(whole, f"predictor plan for {name}"))
    split = run([python, str(Path(__file__).resolve()), "--in-child", str(path.parent)])
    parts = _json(split, f"the timed planning of {name}")
    for resources, part in zip(RESOURCES, parts["plans"], strict=True):
        check(name, resources, part.pop("plan"))
    parts["rest"] = _rest(split, [parts["libraries"], parts["predictor"], *parts["plans"]])
    return {"whole": whole, "parts": parts}


def _rest(whole: Finished, parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return a process's cost outside its timed parts: Python's own start and end."""
    return {
        "seconds": whole.seconds - sum(part["seconds"] for part in parts),
        "cpu_seconds": whole.cpu_seconds - sum(part["cpu_seconds"] for part in parts),
        "peak": whole.peak,
    }


def _json(finished: Finished, what: str) -> Any:
    if finished.returncode != 0:
        raise CannotMeasure(
            f"{what} ended with status {finished.returncode}: {finished.last_words}"
        )
    try:
        return json.loads(finished.stdout)
    except ValueError:
        raise CannotMeasure(f"{what} printed no JSON.") from None


def time_parts(path: Path) -> dict[str, Any]:
    """Return the costs of the imports and of the planning in this fresh process."""
    clock = _Clock()
    import torch
    import transformers

    _ = torch.Tensor, transformers.AutoModelForCausalLM, transformers.PreTrainedModel
    libraries = clock.lap()
    from predictor import pod, startup  # noqa: F401
    from predictor.settings import read_settings

    ours = clock.lap()
    flags = {"model_dir": path, "max_concurrency": 1, "expert_slots": "auto"}
    settings = read_settings(flags)
    plans = []
    for stated in RESOURCES:
        plan = _plan(settings, stated)
        plans.append({"resources": stated.title, **clock.lap(), "plan": plan})
    return {"libraries": libraries, "predictor": ours, "plans": plans}


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> dict[str, float]:
        wall, cpu = self._wall, self._cpu
        self.__init__()  # type: ignore[misc]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": self._wall - wall, "cpu_seconds": self._cpu - cpu, "peak": peak}


def _plan(settings: Any, stated: Stated) -> dict[str, Any] | None:
    """Return a plan as JSON; None if it is refused."""
    from predictor import startup
    from predictor.errors import DoesNotFit
    from predictor.placement.report import as_json
    from predictor.pod.stated import stated_resources

    resources = stated_resources(stated.gpus, stated.memory, stated.disk)
    checkpoint = startup.open_checkpoint(settings, needs_weights=False)
    try:
        return as_json(startup.prepare(settings, checkpoint, resources).placement)
    except DoesNotFit:
        return None


def check(name: str, stated: Stated, plan: Mapping[str, Any] | None) -> None:
    """Check a plan against sizes worked out by hand.

    Raises:
        CannotMeasure: The plan is wrong.
    """
    title = f"The plan of {name} for {stated.title}"
    if plan is None or not stated.fits:
        if (plan is not None) == stated.fits:
            return
        raise CannotMeasure(f"{title} was {'made' if plan else 'refused'}, which cannot be right.")
    shape, tiers = SHAPES[name], plan["tiers"]
    weights = sum(tier["weights"] for tier in tiers)
    if not shape.weights <= weights <= shape.weights + _BUFFERS:
        raise CannotMeasure(f"{title} places {weights} bytes of weights, not {shape.weights}.")
    kv = sum(tier["kv"] for tier in tiers)
    if kv != shape.kv:
        raise CannotMeasure(f"{title} has {kv} bytes of KV cache, not {shape.kv}.")
    over = [tier["name"] for tier in tiers if tier["planned"] > tier["budget"]]
    if over:
        raise CannotMeasure(f"{title} is over the budget of tier {over[0]}.")
    placed = {key.rpartition(".")[2] for key in plan["device_map"]}
    missing = {str(index) for index in range(shape.blocks)} - placed
    if missing:
        raise CannotMeasure(f"{title} leaves out block {min(missing, key=int)}.")


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [one["whole"] for one in rounds]
    parts = [one["parts"] for one in rounds]
    headline = [part["plans"][0] for part in parts]
    return {
        "whole": _median([_costs(each) for each in whole]),
        "libraries": _median([part["libraries"] for part in parts]),
        "predictor": _median([part["predictor"] for part in parts]),
        "planning": _median(headline),
        "start_and_end": _median([part["rest"] for part in parts]),
        "planning_over_whole": statistics.median(
            plan["cpu_seconds"] / each.cpu_seconds
            for plan, each in zip(headline, whole, strict=True)
        ),
        "other_resources": {
            stated.title: _median([part["plans"][index] for part in parts])
            for index, stated in enumerate(RESOURCES)
            if index
        },
        "all_seconds": [each.seconds for each in whole],
    }


def _costs(finished: Finished) -> dict[str, float]:
    return {
        "seconds": finished.seconds,
        "cpu_seconds": finished.cpu_seconds,
        "peak": finished.peak,
    }


def _median(costs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = ("seconds", "cpu_seconds", "peak")
    return {key: statistics.median(each[key] for each in costs) for key in keys}


def _report(result: Mapping[str, Any], rounds: int) -> str:
    columns = ("", "wall s", "CPU s", "peak so far", "CPU / whole")
    rows: list[tuple[str, ...]] = []
    for name, costs in result.items():
        total = costs["whole"]["cpu_seconds"]
        rows.append(_row(f"{name}: predictor plan, whole process", costs["whole"], total))
        rows.append(_row("  import torch, transformers", costs["libraries"], total))
        rows.append(_row("  import predictor.startup", costs["predictor"], total))
        rows.append(_row(f"  plan {RESOURCES[0].title}", costs["planning"], total))
        rows.append(_row("  start and end of the process", costs["start_and_end"], total))
        for title, other in costs["other_resources"].items():
            refused = " (refused)" if title == RESOURCES[-1].title else ""
            rows.append(_row(f"  (besides) plan {title}{refused}", other, total))
    verdicts = [_verdict(name, costs) for name, costs in result.items()]
    head = (
        f"Planning, medians of {rounds} fresh processes with compiled modules "
        "(parts: processes of their own)"
    )
    return "\n".join([head, "", table(columns, rows), "", *verdicts])


def _row(title: str, cost: Mapping[str, float], total: float) -> tuple[str, ...]:
    share = cost["cpu_seconds"] / total
    return (
        title,
        f"{cost['seconds']:.2f}",
        f"{cost['cpu_seconds']:.2f}",
        mib(cost["peak"]),
        f"{share:.2f}",
    )


def _verdict(name: str, costs: Mapping[str, Any]) -> str:
    whole, planning = costs["whole"], costs["planning"]
    return (
        f"{name}: target under {TARGET_SECONDS:.0f} s and {mib(TARGET_BYTES)}: "
        f"whole command {_reached(whole)}; planning alone {_reached(planning)}; "
        f"planning is {costs['planning_over_whole']:.0%} of the command's CPU time"
    )


def _reached(cost: Mapping[str, float]) -> str:
    time_kept = "reached" if cost["seconds"] < TARGET_SECONDS else "MISSED"
    memory_kept = "reached" if cost["peak"] < TARGET_BYTES else "MISSED"
    return f"time {time_kept} ({cost['seconds']:.2f} s), memory {memory_kept}"


if __name__ == "__main__":
    sys.exit(main())
