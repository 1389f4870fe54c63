"""A start: reading a checkpoint into memory, and the first token of a request that waits.

Reading is compared with safetensors, and with runai-model-streamer and fastsafetensors where they
can be imported; all leave the same tensors in main memory. Starts are compared with starts that
fill memory before they are ready, and with another commit's. They repeat an earlier start, whose
results are in the offload folder. Each round runs every contestant once, with the checkpoint in the
page cache and dropped from it, and the median of the rounds counts. Plain direct reads into new
memory are timed beside them: a virtual machine's host gives it memory when it is first touched,
which was seen to take longer than reading the device.

The peers need not be installed beside the predictor: `pip install --target PEERS` them, and run
this program with `PYTHONPATH=PEERS`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint import Size, direct_read_speed, drop_from_cache, make
from measuring import ROOT, CannotMeasure, add_path_flags, finish, machine, run, table
from served import await_line, running, server_command
from start_readers import READERS

TARGET = 1.15
"""Most seconds to the first token after imports and plan, as a multiple of reading all bytes into
new memory."""

LARGE, TINY = Size(2048, 20, 32000, "bfloat16"), Size(128, 4, 256, "float32", head=32)
_POLL = 0.01
_DEVICE, _READERS = "device", 4
_STARTS = {"as they arrive": (), "filled before": ("--fill_before_ready=true",)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="runs of each contestant, of which the median counts")
    add("--blocks", type=int, default=LARGE.blocks, help="blocks of the model, 0.1 GB each")
    add("--budget", help="main memory that the predictor plans for; nothing is streamed by default")
    add("--against", type=Path, help="a checkout of another commit, whose starts are timed too")
    add("--quick", action="store_true", help="a tiny model and one round; proves nothing")
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A run failed.
    """
    size = TINY if flags.quick else replace(LARGE, blocks=flags.blocks)
    rounds = 1 if flags.quick else flags.rounds
    before = machine()
    with tempfile.TemporaryDirectory(dir=flags.workdir) as folder:
        model = Path(folder) / "model"
        model.mkdir()
        count = make(model, size)
        speeds: dict[str, list[float]] = {}
        rates: dict[str, dict[str, list[float]]] = {}
        starts: dict[str, dict[str, list[dict[str, float]]]] = {}
        skipped: dict[str, str] = {}
        for name, (root, settings) in _contestants(flags).items():
            _start(name, model, Path(folder), root, (*settings, *_budget(flags)))  # is remembered
        for _ in range(rounds):
            speeds.setdefault(_DEVICE, []).append(_speed(model, flags))
            for cache in ("warm", "dropped"):
                _prepare(model, cache)
                new = _speed(model, flags, into_new=count)
                speeds.setdefault(cache, []).append(new)
                for name in READERS:
                    seconds = _read(name, model, cache, skipped)
                    if seconds is not None:
                        rates.setdefault(name, {}).setdefault(cache, []).append(seconds)
                for name, (root, settings) in _contestants(flags).items():
                    _prepare(model, cache)
                    times = _start(name, model, Path(folder), root, (*settings, *_budget(flags)))
                    starts.setdefault(name, {}).setdefault(cache, []).append(times)
    result = {
        "bytes": count,
        "bytes_per_second": speeds,
        "reading": rates,
        "starts": starts,
        "skipped": skipped,
        "machine": [before, machine()],
    }
    rate = {name: statistics.median(times) for name, times in speeds.items()}
    _print(result, count, rate)
    return result | {"failure": None if flags.quick else _failure(starts, count, rate)}


def _budget(flags: argparse.Namespace) -> tuple[str, ...]:
    return (f'--max_memory={{"cpu": "{flags.budget}"}}',) if flags.budget else ()


def _contestants(flags: argparse.Namespace) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Return for each contestant its repository and settings."""
    mine = {name: (ROOT, settings) for name, settings in _STARTS.items()}
    return mine | ({} if flags.against is None else {"other commit": (flags.against, ())})


def _speed(model: Path, flags: argparse.Namespace, *, into_new: int = 0) -> float:
    """Return the bytes per second of direct reads.

    Args:
        model: The checkpoint.
        flags: The flags.
        into_new: Bytes to read into memory that is new, once, as a start does; by default, some are
            read into the same memory, with as many at a time as are fastest.
    """
    if flags.quick:
        return 1e9
    if into_new:
        return direct_read_speed(model, readers=_READERS, most=into_new, keep=True)
    return max(direct_read_speed(model, readers=readers) for readers in (1, 2, _READERS))


def _prepare(model: Path, cache: str) -> None:
    if cache == "dropped":
        drop_from_cache(model)
        return
    for file in model.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.read(2**24):
                pass


def _read(name: str, model: Path, cache: str, skipped: dict[str, str]) -> float | None:
    """Return the seconds that a reader takes; None if it cannot be imported."""
    if name in skipped:
        return None
    _prepare(model, cache)
    script = Path(__file__).with_name("start_readers.py")
    finished = run([sys.executable, str(script), name, str(model)])
    if finished.returncode != 0:
        skipped[name] = finished.last_words
        return None
    return float(finished.stdout.strip().splitlines()[-1])


def _start(
    name: str, model: Path, work: Path, root: Path, settings: Sequence[str]
) -> dict[str, float]:
    """Return the seconds from a process's start to its plan, readiness and first token."""
    log, began = work / "serve.log", time.perf_counter()
    store = work / name.replace(" ", "-")
    named = (f"--model_dir={model}", f"--offload_folder={store}", "--max_model_len=256")
    with running(server_command((*named, *settings)), log, root=root) as process:
        port = int(await_line(process, log, r"REST on http://[\d.]+:(\d+)"))
        await_line(process, log, r"(Placement of)")
        plan = ready = time.perf_counter() - began
        while process.poll() is None and not _first_token(port):
            time.sleep(_POLL)
            ready = time.perf_counter() - began
        return {"plan": plan, "ready": ready, "first token": time.perf_counter() - began}


def _first_token(port: int) -> bool:
    """Send a request; return whether it was answered. One that comes too early gets 503."""
    body = json.dumps({"model": "m", "prompt": [5, 6, 7], "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise CannotMeasure(f"The request was answered with {error.code}.") from None
    except OSError:
        pass
    return False


def _print(result: Mapping[str, Any], count: int, rate: Mapping[str, float]) -> None:
    speeds = ", ".join(f"{name} {speed / 1e9:.2f}" for name, speed in rate.items())
    print(f"{count / 1e9:.2f} GB; direct reads in GB/s, {speeds}")
    rows = [
        (f"{name}, {cache}", f"{count / statistics.median(seconds) / 1e9:.2f}",
         f"{count / statistics.median(seconds) / rate[_DEVICE]:.2f}",
         f"{count / statistics.median(seconds) / rate[cache]:.2f}")
        for name, by_cache in result["reading"].items()
        for cache, seconds in by_cache.items()
    ]  # fmt: skip
    print(table(("reading", "GB/s", "of the device's", "of new memory's"), rows))
    for name, reason in result["skipped"].items():
        print(f"{name} was left out: {reason}")
    rows = [
        (f"{name}, {cache}", *(f"{_median(times, key):.2f}" for key in times[0]))
        for name, by_cache in result["starts"].items()
        for cache, times in by_cache.items()
    ]
    print(table(("start", "plan s", "ready s", "first token s"), rows))


def _median(times: Sequence[Mapping[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in times)


def _failure(starts: Mapping[str, Any], count: int, rate: Mapping[str, float]) -> str | None:
    mine = starts["as they arrive"]
    for cache, times in mine.items():
        first, bound = (
            _median(times, "first token"),
            _median(times, "plan") + TARGET * count / rate[cache],
        )
        if first > bound:
            return f"{cache}: the first token comes after {first:.2f} s, not {bound:.2f} s."
        for name, others in starts.items():
            if first > _median(others[cache], "first token"):
                return f"{cache}: the first token comes later than that of {name!r}."
    return None


if __name__ == "__main__":
    sys.exit(main())
