"""Users of several LoRA adapters at one time, compared with as many users of the model alone.

A random Llama with most of its blocks on disk, in a memory cgroup, is served with adapters of its
projections of queries and values. In each round users ask the model first, then the adapters in
turn. Their rows share the passes over the weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import OFFLOADED, Size, make, write_safetensors
from load import Prompt, Server, send_all
from measuring import add_path_flags, finish, machine, table
from prompts import Prompts
from served import add_memory_flags, serve_model

TARGET = 0.8
"""Least tokens per second of the users of adapters, as a multiple of those of the model alone."""

_TINY = Size(512, 6, 512, "bfloat16")
_RANK = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--users", type=int, nargs="+", help="at one time (default: 16)")
    add("--adapters", type=int, help="how many (default: 8)")
    add("--new-tokens", type=int, help="tokens of a reply (default: 16)")
    add("--rounds", type=int, help="how often both are measured (default: 3)")
    add("--resident", action="store_true", help="keep the whole model in memory")
    add("--quick", action="store_true", help="a tiny model in memory; proves nothing")
    add_memory_flags(parser, limit=1.5, budget=0.8)
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A server or a request failed.
    """
    quick = flags.quick
    flags.users = flags.users or [4 if quick else 16]
    flags.adapters = flags.adapters or (2 if quick else 8)
    flags.new_tokens = flags.new_tokens or (4 if quick else 16)
    flags.rounds = flags.rounds or (1 if quick else 3)
    size, before = _TINY if quick else OFFLOADED, machine()
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="adapters-") as work:
        model = Path(work) / "model"
        model.mkdir()
        make(model, size)
        names = [f"adapter-{index}" for index in range(flags.adapters)]
        for seed, name in enumerate(names):
            _write_adapter(Path(work) / name, size, seed)
        levels = _measure(model, names, flags, Path(work))
    result = {"levels": levels, "machine": [before, machine()], "failure": None}
    print(_report(result, flags))
    return result


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured values beside their targets."""
    return [
        {
            "what": f"{level['users']} users: x the model alone",
            "target": f">= {TARGET:g}",
            "measured": level["ratio"],
            "reached": level["ratio"] >= TARGET,
        }
        for level in result["levels"]
    ]


def _write_adapter(folder: Path, size: Size, seed: int) -> None:
    """Write an adapter in the format of PEFT."""
    random = np.random.default_rng(seed)
    keys = size.hidden // size.heads_per_key
    tensors: dict[str, np.ndarray] = {}
    for block in range(size.blocks):
        for name, outputs in (("q_proj", size.hidden), ("v_proj", keys)):
            layer = f"base_model.model.model.layers.{block}.self_attn.{name}"
            for part, shape in (("A", (_RANK, size.hidden)), ("B", (outputs, _RANK))):
                values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.01)
                tensors[f"{layer}.lora_{part}.weight"] = values
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", tensors, "float32")
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK}
    config["target_modules"] = ["q_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _measure(
    model: Path, names: Sequence[str], flags: argparse.Namespace, work: Path
) -> list[dict[str, Any]]:
    settings = ["--max_model_len=256", "--max_batch_size=64"]
    settings += ["--lora_modules", *(f"{name}={work / name}" for name in names)]
    settings += [f"--max_concurrency={-(-max(flags.users) * 64 // 256)}"]
    prompts = Prompts(model, 16)
    in_memory = flags.quick or flags.resident
    with serve_model(model, settings, flags, work, in_memory=in_memory) as server:
        _speed([server], prompts.take(1, seed=-1), 2)  # warms up
        adapted = [replace(server, model=name) for name in names]
        return [_level(server, adapted, users, prompts, flags) for users in flags.users]


def _level(
    server: Server,
    adapted: Sequence[Server],
    users: int,
    prompts: Prompts,
    flags: argparse.Namespace,
) -> dict[str, Any]:
    """Return the tokens per second of so many users, of the model alone and of all adapters."""
    rounds = []
    for number in range(flags.rounds):
        taken = prompts.take(users, seed=number)
        alone, with_adapters = (
            _speed(servers, taken, flags.new_tokens) for servers in ([server], adapted)
        )
        rounds.append((alone, with_adapters))
        print(f"{users} users: {with_adapters / alone:.2f}", file=sys.stderr, flush=True)
    return {
        "users": users,
        "alone": statistics.median(alone for alone, _ in rounds),
        "adapters": statistics.median(adapters for _, adapters in rounds),
        "ratio": statistics.median(adapters / alone for alone, adapters in rounds),
    }


def _speed(servers: Sequence[Server], prompts: Sequence[Prompt], new_tokens: int) -> float:
    """Return the tokens per second of users who send a prompt each, to the models in turn."""

    async def ask() -> list[Any]:
        async with asyncio.TaskGroup() as tasks:
            replies = [
                tasks.create_task(send_all(servers[index % len(servers)], [[prompt]], new_tokens))
                for index, prompt in enumerate(prompts)
            ]
        return [reply for task in replies for reply in task.result()]

    replies = asyncio.run(ask())
    began = min(reply.began - reply.first for reply in replies)
    seconds = max(reply.ended for reply in replies) - began
    return float(sum(reply.tokens for reply in replies) / seconds)


def _report(result: Mapping[str, Any], flags: argparse.Namespace) -> str:
    rows = [
        [str(one["users"]), *(f"{one[key]:.2f}" for key in ("alone", "adapters", "ratio"))]
        for one in result["levels"]
    ]
    head = ("users", "the model, tokens/s", f"{flags.adapters} adapters, tokens/s", "ratio")
    before, after = result["machine"]
    lines = [f"Replies of {flags.new_tokens} tokens, target: at least {TARGET:g}", ""]
    lines += [table(head, rows), "", f"machine: {before} at the start, {after} at the end."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
