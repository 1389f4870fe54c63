"""Replies with and without drafts: text that repeats its prompt, and text that never does.

A Llama whose next token follows from the last one alone is served with most of its blocks on disk,
in a memory cgroup, with prompt lookup and without it. It computes all layers, but its attention and
its MLPs add nothing, and its head knows each token's successor. So a prompt decides how much of the
reply it has in common with it:

- *edited*: the prompt has the whole reply, with one in twenty tokens changed, as code to edit;
- *quoted*: the prompt has half of the reply, in runs of twelve tokens, as documents to quote;
- *new*: the prompt has nothing of the reply;
- *misleading*: each pair of the reply's tokens is in the prompt, before another token than there.

With `--draft-model`, it is served with a draft model besides: a Llama of two small layers that
gives four of five tokens the same successor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import OFFLOADED, Size, make
from counters import ACCEPTED, DRAFTED, read_counters
from load import Prompt, Server, await_quiet, measure_users
from measuring import add_path_flags, finish, machine, table
from served import add_memory_flags, serve_model

TARGETS = {"edited": 2.0, "quoted": None, "new": 0.97, "misleading": 0.97}
"""Least tokens per second with drafts, as a multiple of those without; None for no target."""

MODEL_TARGETS = {"edited": 2.0, "quoted": None, "new": 1.5, "misleading": 1.5}
"""The same with a draft model and lookup."""

_DRAFT_SIZE = Size(512, 2, 32000, "bfloat16", head=64, heads_per_key=2, mlp=1024)
_TINY_DRAFT_SIZE = Size(128, 1, 2048, "bfloat16")
_WRONG = 0.2
"""The part of tokens of which the draft model has another successor."""

_TINY = Size(512, 6, 2048, "bfloat16")
_DRAFTS = {"with": "--prompt_lookup_num_tokens=15", "without": "--prompt_lookup_num_tokens=0"}
_MODEL = "draft model"
_CHANGED, _RUN = 20, 12
_ADDS_NOTHING = ("o_proj.weight", "down_proj.weight")

Figures = dict[str, dict[int, dict[str, float]]]
"""Tokens per second, drafts and accepted drafts, by kind of text and number of users."""

Chain = Sequence[int]
"""The tokens of a reply, after the last token of its prompt."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--users", type=int, nargs="+", help="at one time (default: 1)")
    add("--new-tokens", type=int, help="tokens of a reply (default: 128)")
    add("--rounds", type=int, help="how often all is measured (default: 3)")
    add("--wait", type=float, default=30.0, help="seconds to wait for idle processors")
    add("--draft-model", action="store_true", help="also measure with a draft model")
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
    flags.users = flags.users or ([1, 2] if flags.quick else [1])
    flags.new_tokens = flags.new_tokens or (24 if flags.quick else 128)
    flags.rounds = flags.rounds or (1 if flags.quick else 3)
    size = _TINY if flags.quick else OFFLOADED
    before, measured = machine(), {}
    with tempfile.TemporaryDirectory(dir=flags.workdir, prefix="drafts-") as work:
        model = Path(work) / "model"
        model.mkdir()
        make(model, size)
        texts = Texts(_follow_successors(model, size.vocabulary), flags.new_tokens)
        settings = dict(_DRAFTS)
        if flags.draft_model:
            settings[_MODEL] = f"--draft_model_dir={_make_draft(Path(work), flags.quick)}"
        for drafts, flag in settings.items():
            measured[drafts] = _measure(flag, model, texts, flags, Path(work))
    ratios = {
        drafts: {
            kind: {n: _ratio(measured, drafts, kind, n) for n in flags.users} for kind in TARGETS
        }
        for drafts in settings
        if drafts != "without"
    }
    missed = [
        f"{drafts}: {kind}"
        for drafts, levels in ratios.items()
        for kind, target in _targets(drafts).items()
        if target is not None and levels[kind].get(1, target) < target
    ]
    accepted = {
        kind: {users: level["accepted"] for users, level in levels.items()}
        for kind, levels in measured["with"].items()
    }
    result = {
        "measured": measured,
        "accepted": accepted,
        "ratios": ratios,
        "machine": [before, machine()],
    }
    print(_report(result, flags))
    return result | {"missed": missed, "failure": None}


def targets(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measured values beside their targets."""
    return [
        {
            "what": f"{kind} text: x without drafts",
            "target": f">= {target:g}",
            "measured": ratio,
            "reached": ratio >= target,
        }
        for kind, target in TARGETS.items()
        if target is not None and (ratio := result["ratios"]["with"][kind].get(1)) is not None
    ]


class Texts:
    """Prompts of each kind, and the replies that follow them."""

    def __init__(self, successors: Sequence[int], count: int) -> None:
        """Take the model's successors, and the tokens of a reply."""
        self._successors, self._count = successors, count

    def prompt(self, kind: str, seed: int) -> Prompt:
        """Return a prompt of a kind, the same one in every run."""
        chosen = random.Random(seed)
        first = chosen.randrange(1, len(self._successors))
        chain = [first]
        while len(chain) <= self._count:
            chain.append(self._successors[chain[-1]])
        makers: dict[str, Callable[[Chain, random.Random], list[int]]] = {
            "edited": self._edited,
            "quoted": self._quoted,
            "new": self._new,
            "misleading": self._misleading,
        }
        ids = [*makers[kind](chain, chosen), *chain[:2]]
        return Prompt(" ".join(f"w{token}" for token in ids), len(ids))

    def _other(self, chosen: random.Random) -> int:
        return chosen.randrange(1, len(self._successors))

    def _edited(self, chain: Chain, chosen: random.Random) -> list[int]:
        changed = set(chosen.sample(range(4, len(chain)), len(chain) // _CHANGED))
        return [self._other(chosen) if at in changed else t for at, t in enumerate(chain)]

    def _quoted(self, chain: Chain, chosen: random.Random) -> list[int]:
        runs = [chain[at : at + _RUN] for at in range(0, len(chain), 2 * _RUN)]
        chosen.shuffle(runs)
        return [token for run in runs for token in (*run, *self._new(run, chosen))]

    def _new(self, chain: Chain, chosen: random.Random) -> list[int]:
        return [self._other(chosen) for _ in chain]

    def _misleading(self, chain: Chain, chosen: random.Random) -> list[int]:
        return [
            token for pair in itertools.pairwise(chain) for token in (*pair, self._other(chosen))
        ]


def _make_draft(work: Path, is_quick: bool) -> Path:
    """Make the draft model, which is wrong about the successors of some tokens."""
    folder, size = work / "draft", _TINY_DRAFT_SIZE if is_quick else _DRAFT_SIZE
    folder.mkdir()
    make(folder, size)
    _follow_successors(folder, size.vocabulary, wrong=_WRONG)
    return folder


def _follow_successors(model: Path, vocabulary: int, *, wrong: float = 0.0) -> list[int]:
    """Rewrite the weights so that each token has one successor; return those of all tokens.

    All tokens are on one cycle, so that no reply repeats itself. A part of them, `wrong`, get each
    other's successors.
    """
    cycle = list(range(vocabulary))
    random.Random(0).shuffle(cycle)
    successors = np.empty(vocabulary, dtype=np.int64)
    successors[cycle] = np.roll(cycle, -1)
    exchanged = random.Random(1).sample(range(vocabulary), int(wrong * vocabulary))
    successors[exchanged] = np.roll(successors[exchanged], 1)
    for file in sorted(model.glob("*.safetensors")):
        with file.open("r+b") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        data = np.memmap(file, dtype=np.uint16, mode="r+", offset=8 + length)
        tensors = {
            name: data[entry["data_offsets"][0] // 2 : entry["data_offsets"][1] // 2]
            for name, entry in header.items()
            if name != "__metadata__"
        }
        for name, tensor in tensors.items():
            if name.endswith(_ADDS_NOTHING):
                tensor[:] = 0
        if "lm_head.weight" in tensors:
            embedded = tensors["model.embed_tokens.weight"].reshape(vocabulary, -1)
            tensors["lm_head.weight"].reshape(vocabulary, -1)[successors] = embedded
        data.flush()
    return [int(token) for token in successors]


def _measure(
    flag: str, model: Path, texts: Texts, flags: argparse.Namespace, work: Path
) -> Figures:
    """Return the median of all rounds."""
    settings = [f"--max_model_len={6 * flags.new_tokens}", flag]
    settings += [f"--max_concurrency={max(flags.users)}", f"--offload_folder={work / 'offload'}"]
    in_memory = flags.quick or flags.resident
    with serve_model(model, settings, flags, work, in_memory=in_memory) as server:
        measure_users(server, [[texts.prompt("new", -1)]], 2)  # warms up
        rounds = [_round(server, texts, flags, number) for number in range(flags.rounds)]
    return {
        kind: {
            users: {
                figure: statistics.median(each[kind][users][figure] for each in rounds)
                for figure in ("tokens_per_second", "drafted", "accepted")
            }
            for users in flags.users
        }
        for kind in TARGETS
    }


def _round(server: Server, texts: Texts, flags: argparse.Namespace, number: int) -> Figures:
    figures: Figures = {}
    for kind in TARGETS:
        figures[kind] = {}
        for users in flags.users:
            seeds = range(1000 * number + 100 * users, 1000 * number + 101 * users)
            prompts = [[texts.prompt(kind, seed)] for seed in seeds]
            await_quiet(0 if flags.quick else flags.wait, server.pid)
            before = read_counters(server)
            speed = measure_users(server, prompts, flags.new_tokens)["tokens_per_second"]
            counted = read_counters(server).since(before)
            figures[kind][users] = {
                "tokens_per_second": speed,
                "drafted": counted[DRAFTED],
                "accepted": counted[ACCEPTED],
            }
            print(f"{kind}, {users} users: {speed:.2f}/s", file=sys.stderr, flush=True)
    return figures


def _targets(drafts: str) -> Mapping[str, float | None]:
    return MODEL_TARGETS if drafts == _MODEL else TARGETS


def _ratio(measured: Mapping[str, Figures], drafts: str, kind: str, users: int) -> float:
    speeds = [measured[each][kind][users]["tokens_per_second"] for each in (drafts, "without")]
    return speeds[0] / speeds[1]


def _report(result: Mapping[str, Any], flags: argparse.Namespace) -> str:
    rows = []
    for drafts, kinds in result["ratios"].items():
        for kind, ratios in kinds.items():
            for users, ratio in ratios.items():
                levels = [result["measured"][each][kind][users] for each in (drafts, "without")]
                speeds = [f"{level['tokens_per_second']:.2f}" for level in levels]
                accepted = f"{levels[0]['accepted']:.0f} of {levels[0]['drafted']:.0f}"
                target = _targets(drafts)[kind] if users == 1 else None
                verdict = (
                    "" if target is None else f"{'>=' if ratio >= target else 'MISSED'} {target}"
                )
                source = "lookup" if drafts == "with" else "lookup and draft model"
                rows.append([source, kind, str(users), *speeds, f"{ratio:.2f}", verdict, accepted])
    before, after = result["machine"]
    head = (
        "drafts",
        "text",
        "users",
        "with drafts, tokens/s",
        "without, tokens/s",
        "ratio",
        "target",
        "accepted",
    )
    return "\n".join(
        [
            f"Replies of {flags.new_tokens} tokens",
            "",
            table(head, rows),
            "",
            f"machine: {before} at the start, {after} at the end.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
