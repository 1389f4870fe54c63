"""A model in bfloat16, FP8, int8 and int4, streamed and resident, beside llama.cpp's server.

A random Llama of 1.1 billion parameters (2.2 GB in bfloat16). Each contestant runs alone in a
memory cgroup, from a cold page cache:

- ``bf16``: as it is;
- ``fp8``: the same weights as they are published in FP8, with a scale per block of 128 x 128;
- ``int8``, ``int4``: quantised by ``--weights_dtype``. The first start writes the offload store if
  the model does not fit, and a second one is measured;
- ``before``: bf16 by another copy of the predictor, given by ``--before``;
- ``llama bf16``, ``llama q8_0``, ``llama q4_0``: llama.cpp's server with the same weights, if
  ``--llama_server`` is that program and ``--peer_python`` is a Python that has gguf.

Users send prompts of one token at the same time, so that every forward pass is one of decode; then
one user sends a long prompt. The bandwidth of main memory and of the disk is measured around them.
Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bandwidth import processor, read_bandwidth
from checkpoint import Size, direct_read_speed, make
from measuring import CannotMeasure, add_path_flags, finish, machine
from quantised_contestants import run_peer, run_predictor
from quantised_files import write_as
from quantised_report import failure_of, report, targets
from serving import LLAMA

OURS = ("bf16", "fp8", "int8", "int4", "before")
PEERS = {"llama bf16": "bf16", "llama q8_0": "q8_0", "llama q4_0": "q4_0"}
_TINY = Size(256, 4, 512, "bfloat16", head=64, heads_per_key=2)
Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--contestants", nargs="+", choices=[*OURS, *PEERS], help="all that can run by default")
    add("--limits", type=float, nargs="+", default=[0.9, 1.6, 4.0], help="GiB of the cgroups")
    add("--blocks", type=int, help="of the model, instead of 22 of 84 MiB each")
    add("--users", type=int, nargs="+", help="at one time (default: 1 8 16)")
    add("--tokens", type=int, help="new tokens of each reply (default: 24)")
    add("--prompt", type=int, help="tokens of the long prompt (default: 512)")
    add("--llama_server", type=Path, help="llama.cpp's program llama-server")
    add("--peer_python", type=Path, help="a Python that has gguf")
    add("--before", type=Path, help="a copy of the repository to compare with in bf16")
    add("--keep", type=Path, help="a folder that keeps the written models for the next run")
    add("--quick", action="store_true", help="a tiny model without a cgroup; proves nothing")
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A contestant did not do the measured work.
    """
    _fill_in(flags)
    before, size = machine(), _TINY if flags.quick else LLAMA
    size = replace(size, blocks=flags.blocks or size.blocks)
    with _models(flags) as folder:
        weights = _write(folder / "bf16", lambda target: _make(target, size))
        speeds = [_disk_speed(folder / "bf16")]
        bandwidths = [read_bandwidth()]
        limits: dict[str, dict[str, Run]] = {}
        for limit in flags.limits:
            name = f"{limit:g} GiB" if limit else "no cgroup"
            limits[name] = {who: _run(who, folder, limit, flags) for who in flags.contestants}
            speeds.append(_disk_speed(folder / "bf16"))
            bandwidths.append(read_bandwidth())
    result: dict[str, Any] = {
        "weights": weights,
        "embeddings": size.vocabulary * size.hidden * 2,
        "disk": max(filter(None, speeds), default=None),
        "bandwidth": max(bandwidths),
        "processor": processor(),
        "limits": limits,
        "machine": [before, machine()],
    }
    result["targets"] = targets(result)
    print(report(result))
    return result | {"failure": failure_of(result, has_cgroups=not flags.quick)}


def _fill_in(flags: argparse.Namespace) -> None:
    quick = flags.quick
    flags.users = flags.users or ([1, 2] if quick else [1, 8, 16])
    flags.tokens = flags.tokens or (8 if quick else 24)
    flags.prompt = flags.prompt or (64 if quick else 512)
    flags.limits = [0.0] if quick else flags.limits
    able = {"before": flags.before is not None}
    able |= dict.fromkeys(PEERS, bool(flags.llama_server and flags.peer_python))
    if flags.contestants is None:
        flags.contestants = [who for who in (*OURS, *PEERS) if able.get(who, True)]
        if not able["llama bf16"]:
            print("llama.cpp is left out: see --llama_server and --peer_python.", file=sys.stderr)
    for who in flags.contestants:
        if not able.get(who, True):
            needed = "--before" if who == "before" else "--llama_server and --peer_python"
            raise CannotMeasure(f"{who} needs {needed}.")


# The models


@contextlib.contextmanager
def _models(flags: argparse.Namespace) -> Iterator[Path]:
    if flags.keep:
        flags.keep.mkdir(parents=True, exist_ok=True)
        yield flags.keep
        return
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="quantised-") as work:
        yield Path(work)


def _write(target: Path, write: Callable[[Path], object]) -> int:
    """Write a model unless it is kept from an earlier run; return its bytes."""
    if not target.exists():
        print(f"writing {target.name} ...", file=sys.stderr, flush=True)
        partial = target.with_name(f"{target.name}.partial")
        write(partial)
        partial.rename(target)
    files = [target] if target.is_file() else target.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _make(target: Path, size: Size) -> None:
    target.mkdir()
    make(target, size)


def _disk_speed(folder: Path) -> float | None:
    """Return the disk's bandwidth by direct reads; None for a tiny model."""
    try:
        return max(direct_read_speed(folder, readers=readers) for readers in (1, 4))
    except CannotMeasure:
        return None


def _run(who: str, folder: Path, limit: float, flags: argparse.Namespace) -> Run:
    print(f"{who}, {limit:g} GiB ...", file=sys.stderr, flush=True)
    if who in PEERS:
        kind = PEERS[who]
        file = folder / f"{kind}.gguf"
        _write(file, lambda target: write_as(kind, folder / "bf16", target, flags.peer_python))
        return _outcome(lambda: run_peer(file, limit, flags))
    model = folder / ("fp8" if who == "fp8" else "bf16")
    if who == "fp8":
        _write(model, lambda target: write_as(who, folder / "bf16", target))
    return _outcome(lambda: run_predictor(who, model, limit, flags))


def _outcome(measure: Callable[[], Run]) -> Run:
    """Return a contestant's numbers, or why it has none, so that others are measured."""
    try:
        return measure()
    except CannotMeasure as error:
        print(f"  {error}", file=sys.stderr, flush=True)
        return {"refused": "does not fit" in str(error), "why": str(error)}


if __name__ == "__main__":
    sys.exit(main())
