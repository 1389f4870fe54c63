"""No limit kills the server: a grid of models, memory limits and users, each in its own cgroup.

Every case starts a real server with a model of some hundred megabytes. Most limits are smaller than
the model. Users send prompts of the greatest length at the same time. The server must survive, and
its anonymous memory must stay within its plan and `memory_reserve`. If the plan of a model that is
not quantised is refused, Accelerate runs with a hand-set ``max_memory`` under the same limit, for
comparison. Needs root.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import Size, drop_from_cache, make
from groups import memory_group, sampled
from load import Server, measure_users
from measuring import CannotMeasure, add_path_flags, finish, machine, mib, run, table
from mixtures import SKEWED, MixtureSize, make_mixture
from quantised_files import write_as
from served import serve
from serving import Prompts


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of the grid.

    Attributes:
        size: Its size before it is quantised.
        quantised: How: ``"fp8"`` as it is published, ``"int8"`` or ``"int4"`` by the predictor.
    """

    size: Size | MixtureSize
    quantised: str | None = None


SHAPES = {
    "16 blocks of 21 MB": Shape(Size(1024, 16, 2048, "bfloat16")),
    "16 blocks of 42 MB": Shape(Size(1024, 16, 2048, "float32")),
    "6 blocks of 84 MB": Shape(Size(2048, 6, 2048, "bfloat16")),
    "48 blocks of 5 MB": Shape(Size(512, 48, 2048, "bfloat16")),
    "6 blocks of 32 experts of 2.4 MB": Shape(MixtureSize(1024, 6, 32, 4, inner=384)),
    "8 blocks of 128 experts of 0.4 MB": Shape(MixtureSize(512, 8, 128, 8, inner=128)),
    "16 blocks of 84 MB in fp8": Shape(Size(2048, 16, 2048, "bfloat16"), "fp8"),
    "16 blocks of 84 MB to int8": Shape(Size(2048, 16, 2048, "bfloat16"), "int8"),
    "24 blocks of 84 MB to int4": Shape(Size(2048, 24, 2048, "bfloat16"), "int4"),
    "10 blocks of 64 experts of 2.4 MB to int4": Shape(
        MixtureSize(1024, 10, 64, 4, inner=384), "int4"
    ),
}
LIMITS = (0.55, 0.65, 0.8, 1.0, 1.3)
USERS = (1, 8)
_LENGTH, _PROMPT, _NEW = 256, 160, 16
_RESERVE = 128 * 2**20
"""The setting `memory_reserve`: bytes for memory that no plan counts."""

Case = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and returns the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    add("--limits", type=float, nargs="+", default=list(LIMITS), help="GiB")
    add("--users", type=int, nargs="+", default=list(USERS), help="at one time")
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them."""
    before, cases = machine(), []
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="limits-") as work:
        for name in flags.shapes:
            folder = Path(work) / name.replace(" ", "-")
            _make(folder, SHAPES[name])
            for limit, users in itertools.product(flags.limits, flags.users):
                case: Case = {"model": name, "limit": int(limit * 2**30), "users": users}
                cases.append(case | _case(folder, case, Path(work), flags.mounts))
                print(_line(cases[-1]), file=sys.stderr, flush=True)
    result = {"cases": cases, "machine": [before, machine()]}
    print(_report(cases))
    return result | {"failure": _failure(cases)}


def _make(folder: Path, shape: Shape) -> None:
    """Write the checkpoint of a model, which is published quantised or not."""
    plain = folder.with_name(f"{folder.name}-plain") if shape.quantised == "fp8" else folder
    plain.mkdir()
    if isinstance(shape.size, MixtureSize):
        make_mixture(plain, shape.size, SKEWED)
    else:
        make(plain, shape.size)
    if plain != folder:
        write_as("fp8", plain, folder)
        shutil.rmtree(plain)


def _case(folder: Path, case: Case, work: Path, mounts: Path) -> Case:
    drop_from_cache(folder)
    quantised = SHAPES[case["model"]].quantised
    settings = [f"--model_dir={folder}", f"--max_model_len={_LENGTH}"]
    settings += [f"--max_concurrency={case['users']}", "--prefill_chunk=128"]
    if quantised in ("int8", "int4"):  # what does not fit is read from the store alone
        offload = folder.parent / "offload" / f"{case['limit']}-{case['users']}-{folder.name}"
        settings += [f"--weights_dtype={quantised}", f"--offload_folder={offload}"]
    with memory_group(case["limit"], mounts=mounts) as group, sampled(group):
        try:
            with serve(settings, group, work) as server:
                measured = _under_load(server, folder, case["users"])
        except CannotMeasure as error:
            if group.oom_kills():
                return {"outcome": "killed", "peak": group.anonymous_peak}
            if "does not fit" not in str(error):
                return {"outcome": "failed", "why": str(error), "peak": group.anonymous_peak}
            measured = {"outcome": "refused", "by_hand": None}
        measured |= {"peak": group.anonymous_peak}
        if group.oom_kills():
            return measured | {"outcome": "killed"}
    if measured["outcome"] == "refused" and not quantised:
        measured["by_hand"] = _by_hand(folder, case["limit"], mounts)
    return measured


def _under_load(server: Server, folder: Path, users: int) -> Case:
    prompts = Prompts(folder, _PROMPT)
    taken = [prompts.take(2, seed=user) for user in range(users)]
    load = measure_users(server, taken, _NEW)
    url = f"http://{server.host}:{server.port}/v2/models/{server.model}"
    with urllib.request.urlopen(url, timeout=60) as response:
        placement = json.loads(json.load(response)["properties"]["placement"])
    cpu = next(tier for tier in placement["tiers"] if tier["name"] == "cpu")
    disk = next(tier for tier in placement["tiers"] if tier["name"] == "disk")
    return {
        "outcome": "served",
        "tokens_per_second": load["tokens_per_second"],
        "owned": cpu["owned"],
        "planned": cpu["planned"],
        "on_disk": disk["weights"],
        "by_block": placement["by_block"],
    }


def _by_hand(folder: Path, limit: int, mounts: Path) -> str:
    """Return the outcome of Accelerate with a hand-set ``max_memory`` under the same limit."""
    drop_from_cache(folder)
    script = str(Path(__file__).with_name("contestants.py"))
    argv = [sys.executable, script, "by-hand", str(folder), f"--limit={limit}", "--tokens=3"]
    with memory_group(limit, mounts=mounts) as group:
        try:
            done = run(group.command(argv))
        except subprocess.TimeoutExpired:
            return "no answer"
        if group.oom_kills():
            return "killed"
        if done.returncode != 0:
            return f"failed: {done.last_words[:80]}"
        last = json.loads(done.stdout.strip().splitlines()[-1])["per_token"][-1]
        return f"{last['seconds']:.2f} s/token"


def _allowed(case: Case) -> int:
    """Return the bytes that the server may hold: before planning, in the plan, and in reserve."""
    before: int = case["limit"] - case["owned"]
    return before + int(case["planned"]) + _RESERVE


def _failure(cases: Sequence[Case]) -> str | None:
    """Return a sentence about broken promises; None if there are none."""
    wrong = [_line(case) for case in cases if case["outcome"] in ("killed", "failed")]
    over = [
        _line(case)
        for case in cases
        if case["outcome"] == "served" and case["peak"] > _allowed(case)
    ]
    if not any(case.get("on_disk") for case in cases):
        return "Nothing was offloaded: give smaller limits."
    if wrong or over:
        return f"Not as promised: {'; '.join([*wrong, *over])}"
    return None


def _line(case: Case) -> str:
    return ", ".join(str(cell) for cell in _row(case))


def _row(case: Case) -> list[str]:
    row = [case["model"], mib(case["limit"]), str(case["users"]), case["outcome"]]
    if case["outcome"] != "served":
        return [*row, "-", "-", mib(case["peak"]), "-", "-", case.get("by_hand") or "-"]
    return [
        *row,
        mib(case["on_disk"]),
        mib(_allowed(case)),
        mib(case["peak"]),
        f"{100 * case['peak'] / _allowed(case):.0f} %",
        f"{case['tokens_per_second']:.1f}",
        "-",
    ]


_COLUMNS = (
    *("model", "limit", "users", "outcome", "on disk", "allowed", "anon. peak", "of allowed"),
    *("tokens/s", "Accelerate by hand"),
)


def _report(cases: Sequence[Mapping[str, Any]]) -> str:
    counts = {
        outcome: sum(case["outcome"] == outcome for case in cases)
        for outcome in ("served", "refused", "killed", "failed")
    }
    return "\n".join(
        [
            table(_COLUMNS, [_row(dict(case)) for case in cases]),
            "",
            f"{len(cases)} cases: " + ", ".join(f"{n} {name}" for name, n in counts.items()),
            "allowed: memory held before planning, plus the plan, plus memory_reserve.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
