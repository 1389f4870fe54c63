"""Replies after long prompts: the tokens per second of users, by the length of their contexts.

A random Llama of few blocks is served from main memory, so that attention to the cache takes a
large part of a pass. All users of a level have prompts of their own, of one length. Once all have
their first token, the time from one token to the next is that of a decode pass over all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint import Size, make
from load import Server, send_all
from measuring import add_path_flags, finish, machine, table
from prompts import Prompts
from served import serve

_SIZE = Size(1024, 4, 4096, "bfloat16", head=64, heads_per_key=4, mlp=2816, positions=2**16)
_TINY = Size(512, 2, 512, "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--users", type=int, nargs="+", help="at one time (default: 1 4)")
    add("--contexts", type=int, nargs="+", help="tokens of a prompt (default: 256 2048 8192 16384)")
    add("--new-tokens", type=int, help="tokens of a reply (default: 32)")
    add("--limit", type=float, help="ignored: the model is in main memory")
    add("--budget", type=float, help="ignored, likewise")
    add("--quick", action="store_true", help="a tiny model and short contexts; proves nothing")
    add_path_flags(parser)
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A server or a request failed.
    """
    quick = flags.quick
    flags.users = flags.users or ([2] if quick else [1, 4])
    flags.contexts = flags.contexts or ([32, 64] if quick else [256, 2048, 8192, 16384])
    flags.new_tokens = flags.new_tokens or (4 if quick else 32)
    before = machine()
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="contexts-") as work:
        model = Path(work) / "model"
        model.mkdir()
        make(model, _TINY if quick else _SIZE)
        longest = 2 * max(flags.contexts) + flags.new_tokens  # words have a token or two
        settings = [f"--model_dir={model}", f"--max_model_len={longest}", "--prefix_cache=false"]
        settings += [f"--max_concurrency={max(flags.users)}", "--prompt_lookup_num_tokens=0"]
        with serve(settings, None, Path(work)) as server:
            prompts = Prompts(model, 16)
            levels = [
                _level(server, prompts, users, context, flags.new_tokens)
                for users in flags.users
                for context in sorted(flags.contexts)
            ]
    result = {"levels": levels, "machine": [before, machine()], "failure": None}
    print(_report(result))
    return result


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG001
    """Return nothing: `attention` has the targets of long contexts."""
    return []


def _level(
    server: Server, prompts: Prompts, users: int, context: int, new_tokens: int
) -> dict[str, Any]:
    """Return the seconds of a decode pass of so many users with a context each."""
    taken = prompts.take(users, seed=context, tokens=context)
    replies = asyncio.run(send_all(server, [[prompt] for prompt in taken], new_tokens))
    # The last gaps of the last to begin: all others decode beside it, or have ended.
    last = max(replies, key=lambda reply: reply.began)
    gap = statistics.median(last.gaps)
    print(f"{users} users, {context} tokens: {gap:.3f} s a token", file=sys.stderr, flush=True)
    return {
        "users": users,
        "context": context,
        "first": max(reply.first for reply in replies),
        "gap": gap,
    }


def _report(result: Mapping[str, Any]) -> str:
    shortest: dict[int, float] = {}
    rows = []
    for level in result["levels"]:
        users, gap = level["users"], level["gap"]
        short = shortest.setdefault(users, gap)
        times = [f"{level['first']:.2f}", f"{1e3 * gap:.1f}", f"{short / gap:.2f}"]
        rows.append([str(users), str(level["context"]), *times])
    head = ("users", "context", "last first token, s", "ms a token", "x the shortest")
    before, after = result["machine"]
    return "\n".join([table(head, rows), "", f"machine: {before}, {after}."])


if __name__ == "__main__":
    sys.exit(main())
