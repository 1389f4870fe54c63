"""How long `predictor plan` takes for the largest models, and how much memory.

Plans BLOOM-176B and Llama-3-70B from their config.json alone. Every round starts, for each model,
two fresh processes: the command as users type it, and one that stops the time of its imports and
of its planning apart, so that the table says where the time goes. The ratio between them is the
finding; seconds are those of this machine at this moment. A plan that is nonsense (weights or KV
cache other than the shapes make, a tier over its budget, a block left out) fails the benchmark.
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
    """Runs the benchmark and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind; the median")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--python", default=sys.executable, help="the interpreter to measure")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--in-child", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    if flags.in_child is not None:
        print(json.dumps(time_parts(flags.in_child)))
        return 0
    return finish(lambda: measure(flags.models, flags.rounds, flags.python), flags.json)


def measure(models: Sequence[str], rounds: int, python: str) -> dict[str, Any]:
    """Returns all numbers, after printing them.

    Raises:
        CannotMeasure: A process failed, or a plan is nonsense.
    """
    before = machine()
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    compile_modules([python, "-c", "import torch, transformers, predictor.cli, predictor.startup"])
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in models:
                seen[name].append(_round(Path(folder), name, python))
    result = {name: _medians(found) for name, found in seen.items()}
    print(_report(result, rounds), f"\nmachine: {before} at the start, {machine()} at the end")
    return {
        "rounds": rounds,
        "target": {"seconds": TARGET_SECONDS, "bytes": TARGET_BYTES},
        "models": result,
    }


def _round(folder: Path, name: str, python: str) -> dict[str, Any]:
    """Runs both processes for one model and checks every plan that comes out of them."""
    path = folder / name / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(SHAPES[name].config))
    stated = RESOURCES[0]
    size = ["--gpus", str(stated.gpus), "--memory", stated.memory, "--disk", stated.disk]
    command = [python, "-m", "predictor", "plan", str(path.parent), *size, "--output", "json"]
    command += ["--max_concurrency", "1"]  # whose cache is known; as many as fit is the default
    whole = run(command)
    check(name, stated, _json(whole, f"predictor plan for {name}"))
    split = run([python, str(Path(__file__).resolve()), "--in-child", str(path.parent)])
    parts = _json(split, f"the timed planning of {name}")
    for resources, part in zip(RESOURCES, parts["plans"], strict=True):
        check(name, resources, part.pop("plan"))
    parts["rest"] = _rest(split, [parts["libraries"], parts["predictor"], *parts["plans"]])
    return {"whole": whole, "parts": parts}


def _rest(whole: Finished, parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns what a process cost outside of its timed parts: Python's own start and end."""
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
    """Returns the seconds of the imports and of the planning in this process, which is fresh."""
    clock = _Clock()
    import torch
    import transformers

    _ = torch.Tensor, transformers.AutoModelForCausalLM, transformers.PreTrainedModel
    libraries = clock.lap()
    from predictor import pod, startup  # noqa: F401
    from predictor.settings import read_settings

    ours = clock.lap()
    settings = read_settings({"model_dir": path, "max_concurrency": 1})
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
    """Returns a plan as JSON; None where it is refused."""
    from predictor import startup
    from predictor.errors import DoesNotFit
    from predictor.placement.report import as_json
    from predictor.pod.stated import state

    resources = state(stated.gpus, stated.memory, stated.disk)
    checkpoint = startup.open_checkpoint(settings, needs_weights=False)
    try:
        return as_json(startup.prepare(settings, checkpoint, resources).placement)
    except DoesNotFit:
        return None


def check(name: str, stated: Stated, plan: Mapping[str, Any] | None) -> None:
    """Refuses a plan that cannot be right.

    Raises:
        CannotMeasure: Says what is wrong with it.
    """
    where = f"The plan of {name} for {stated.title}"
    if plan is None or not stated.fits:
        if (plan is not None) == stated.fits:
            return
        raise CannotMeasure(f"{where} was {'made' if plan else 'refused'}, which cannot be right.")
    shape, tiers = SHAPES[name], plan["tiers"]
    weights = sum(tier["weights"] for tier in tiers)
    if not shape.weights <= weights <= shape.weights + _BUFFERS:
        raise CannotMeasure(f"{where} places {weights} bytes of weights, not {shape.weights}.")
    kv = sum(tier["kv"] for tier in tiers)
    if kv != shape.kv:
        raise CannotMeasure(f"{where} has {kv} bytes of KV cache, not {shape.kv}.")
    over = [tier["name"] for tier in tiers if tier["planned"] > tier["budget"]]
    if over:
        raise CannotMeasure(f"{where} is over the budget of tier {over[0]}.")
    placed = {key.rpartition(".")[2] for key in plan["device_map"]}
    missing = {str(index) for index in range(shape.blocks)} - placed
    if missing:
        raise CannotMeasure(f"{where} leaves out block {min(missing, key=int)}.")


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [found["whole"] for found in rounds]
    parts = [found["parts"] for found in rounds]
    headline = [found["plans"][0] for found in parts]
    return {
        "whole": _median([_costs(each) for each in whole]),
        "libraries": _median([found["libraries"] for found in parts]),
        "predictor": _median([found["predictor"] for found in parts]),
        "planning": _median(headline),
        "start_and_end": _median([found["rest"] for found in parts]),
        "planning_over_whole": statistics.median(
            plan["cpu_seconds"] / each.cpu_seconds
            for plan, each in zip(headline, whole, strict=True)
        ),
        "other_resources": {
            stated.title: _median([found["plans"][index] for found in parts])
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


def _median(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = ("seconds", "cpu_seconds", "peak")
    return {key: statistics.median(each[key] for each in found) for key in keys}


def _report(result: Mapping[str, Any], rounds: int) -> str:
    columns = ("", "wall s", "CPU s", "peak so far", "CPU / whole")
    rows: list[tuple[str, ...]] = []
    for name, found in result.items():
        total = found["whole"]["cpu_seconds"]
        rows.append(_row(f"{name}: predictor plan, whole process", found["whole"], total))
        rows.append(_row("  import torch, transformers", found["libraries"], total))
        rows.append(_row("  import predictor.startup", found["predictor"], total))
        rows.append(_row(f"  plan {RESOURCES[0].title}", found["planning"], total))
        rows.append(_row("  start and end of the process", found["start_and_end"], total))
        for title, other in found["other_resources"].items():
            refused = " (refused)" if title == RESOURCES[-1].title else ""
            rows.append(_row(f"  (besides) plan {title}{refused}", other, total))
    verdicts = [_verdict(name, found) for name, found in result.items()]
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


def _verdict(name: str, found: Mapping[str, Any]) -> str:
    whole, planning = found["whole"], found["planning"]
    return (
        f"{name}: target under {TARGET_SECONDS:.0f} s and {mib(TARGET_BYTES)}: "
        f"whole command {_reached(whole)}; planning alone {_reached(planning)}; "
        f"planning is {found['planning_over_whole']:.0%} of the command's CPU time"
    )


def _reached(cost: Mapping[str, float]) -> str:
    time_kept = "reached" if cost["seconds"] < TARGET_SECONDS else "MISSED"
    memory_kept = "reached" if cost["peak"] < TARGET_BYTES else "MISSED"
    return f"time {time_kept} ({cost['seconds']:.2f} s), memory {memory_kept}"


if __name__ == "__main__":
    sys.exit(main())
