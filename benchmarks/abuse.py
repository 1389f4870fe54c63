"""Clients that mean harm: what they cost a probe, a neighbour and the memory of the server.

A real server runs in a memory cgroup of 2 GiB. Beside it run a probe, which asks for health on new
connections, and a neighbour, which generates all the time. Each load comes from a process that gets
half a processor. It is first sent to a process that only drops what it reads, then to the server:
so the neighbour's loss is that by the server's work, and not by the clients' own. Without root the
memory is unlimited, and signals halve the clients' time.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attacks import CASES, Case, attack, half_a_processor
from checkpoint import make_bert
from groups import MemoryGroup, if_allowed, memory_group, sampled
from measuring import ROOT, CannotMeasure, add_path_flags, finish, machine
from served import serve
from verdicts import missed, report, targets, unseen, wrong
from witnesses import PATHS, Witnesses, witnesses

_LIMIT = 2 * 2**30
_QUICK_SHARE = 0.3
"""Clients of the quick form, of all."""

Numbers = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--cases", nargs="+", help="the numbers of cases, such as C1 (default: all)")
    add("--seconds", type=float, default=8.0, help="length of each load (default: 8)")
    add("--quick", action="store_true", help="fewer cases and clients; times have no bounds")
    add_path_flags(parser)
    flags = parser.parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def measure(flags: argparse.Namespace) -> Numbers:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A server did not start or was killed, or a bystander or a client failed.
    """
    before = machine()
    results: list[Numbers] = []
    chosen = [case for case in CASES if _is_chosen(case, flags)]
    with (
        tempfile.TemporaryDirectory(dir=flags.workdir, prefix="abuse-") as work,
        half_a_processor(flags.mounts) as clients,
    ):
        for model in dict.fromkeys(case.model for case in chosen):
            cases = [case for case in chosen if case.model == model]
            results += _Measurement(flags, clients, Path(work)).of(model, cases)
    print(report(results))
    reached = [target for result in results for target in targets(result)]
    failures = [sentence for result in results for sentence in wrong(result)]
    if not flags.quick:
        failures += [sentence for result in results for sentence in unseen(result)]
        failures += [missed(target) for target in reached if not target["reached"]]
    return {
        "cases": results,
        "targets": reached,
        "machine": [before, machine()],
        "failure": "\n".join(failures) or None,
    }


def _is_chosen(case: Case, flags: argparse.Namespace) -> bool:
    if flags.cases is None:
        return case.is_quick or not flags.quick
    return case.name.split()[0] in flags.cases


class _Measurement:
    """The cases of one model, whose server runs until the last."""

    def __init__(self, flags: argparse.Namespace, clients: Path | None, work: Path) -> None:
        self._flags, self._clients, self._work = flags, clients, work
        self._capacity = 0.0  # requests per second, once it is measured

    def of(self, model: str, cases: Sequence[Case]) -> list[Numbers]:
        """Start the server and return the numbers of its cases."""
        results = []
        user = "neighbour" if model == "demo" else "lone"
        limited = memory_group(_LIMIT, mounts=self._flags.mounts)
        with (
            if_allowed(limited, "The server's memory is not limited") as group,
            _not_killed(group),
            serve(_settings(model, self._work), group, self._work) as server,
            witnesses(user, server, self._work) as beside,
        ):
            time.sleep(self._flags.seconds / 2)  # until the neighbour's speed is steady
            for case in cases:
                results.append(self._case(case, beside, group))
                print(report(results[-1:]), file=sys.stderr, flush=True)
        return results

    def _case(self, case: Case, beside: Witnesses, group: MemoryGroup | None) -> Numbers:
        order = self._order(case)
        dropped = None
        if case.has_neighbour and not self._flags.quick:
            dropped = attack(case, {**order, **beside.ports["drop"]}, self._clients)
        files, passes = beside.open_files(), beside.passes()
        with contextlib.nullcontext() if group is None else sampled(group):
            result = attack(case, {**order, **beside.ports["server"]}, self._clients)
        window = result["window"]
        result = {"name": case.name, **order, **result, "left": beside.await_settled(files)}
        result |= {path: beside.probed(path, window) for path in PATHS}
        if case.name == "C13 capacity":
            self._capacity = result["counts"].get("200", 0) / order["seconds"]
        if group is not None:
            result |= {"anonymous": group.anonymous_peak, "kills": group.oom_kills()}
        if case.model == "demo":
            return result | _neighbour(beside, window, dropped)
        return result | _lone_text(beside, window, passes)

    def _order(self, case: Case) -> dict[str, float]:
        share = _QUICK_SHARE if self._flags.quick else 1.0
        return {
            "clients": max(1, round(case.clients * share)),
            "seconds": case.seconds or self._flags.seconds,
            "rate": case.rate * self._capacity,
        }


def _neighbour(beside: Witnesses, window: Sequence[float], dropped: Numbers | None) -> Numbers:
    tokens = beside.tokens_per_second(window)
    result: Numbers = {"tokens": tokens, "neighbour_refused": beside.refusals(window)}
    if dropped is None:
        return result
    before = beside.tokens_per_second(dropped["window"])
    if not before:
        raise CannotMeasure("The neighbour generated nothing beside a load that is dropped.")
    return result | {"tokens_beside_dropped": before, "neighbour": tokens / before}


def _lone_text(beside: Witnesses, window: Sequence[float], before: tuple[float, float]) -> Numbers:
    waits = beside.waits(window)
    count, seconds = (now - then for now, then in zip(beside.passes(), before, strict=True))
    if not count:
        raise CannotMeasure("The server counted no forward pass.")
    began, ended = window
    return {
        "lone": waits,
        "pass_seconds": seconds / count,
        "lone_passes": waits["p50"] * count / (ended - began),  # that ran meanwhile
    }


def _settings(model: str, work: Path) -> list[str]:
    if model == "demo":
        budget = '{"cpu": "8MiB"}'
        more = ["--max_model_len=256", "--prefill_chunk=64", f"--max_memory={budget}"]
        return [f"--model_dir={ROOT / 'examples' / 'demo-model'}", "--torchserve_api=true", *more]
    folder = work / model.replace(" ", "-")
    folder.mkdir()
    make_bert(folder, hidden=int(model.removeprefix("bert ")), blocks=1)
    return [f"--model_dir={folder}", "--task=text_embedding", "--torchserve_api=true"]


@contextlib.contextmanager
def _not_killed(group: MemoryGroup | None) -> Iterator[None]:
    """Name the OOM killer where it is the reason of what went wrong."""
    try:
        yield
    except (CannotMeasure, OSError) as error:
        if group is not None and group.oom_kills():
            raise CannotMeasure(f"The server was killed for memory, after which: {error}") from None
        raise


if __name__ == "__main__":
    sys.exit(main())
