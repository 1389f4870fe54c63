"""Bulk work: `predictor batch` compared with the engine alone at its best batch size.

The engine gets the same prompts, as tokens, all at once: nothing is decoded, written or ordered.
Each size of a batch has a process of its own, and the best of them counts. Prompts and replies have
unequal lengths, and no token ends a reply. The model is a random Llama, in main memory or, with
``--streamed``, with most of its blocks on disk.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint import Size, make
from contestants import Listening, bring_up
from measuring import CannotMeasure, add_path_flags, finish, machine, run, table

TARGET = 0.95
"""Least tokens per second, as a multiple of the engine's."""

SMALL, TINY = Size(512, 8, 4096, "bfloat16", head=64), Size(128, 4, 256, "float32", head=32)
_LENGTH = 512
_RATE = re.compile(r"([\d.e+]+) reply tokens/s")
_BUDGET = {"cpu": "96MiB"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, or the engine of one size, and return the exit code."""
    flags = _parser().parse_args(arguments)
    if flags.engine:
        print(json.dumps(measure_engine(flags)))
        return 0
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--prompts", type=int, default=1000, help="how many prompts")
    add("--sizes", type=_numbers, default=(64, 128, 256), help="batches of the engine alone")
    add("--rounds", type=int, default=2, help="runs of each, of which the fastest counts")
    add("--prompt_tokens", type=int, default=200, help="most tokens of a prompt")
    add("--new_tokens", type=int, default=64, help="most tokens of a reply")
    add("--streamed", action="store_true", help="leave most blocks on disk")
    add("--quick", action="store_true", help="a tiny model and few tokens; proves nothing")
    add("--engine", type=int, help=argparse.SUPPRESS)
    add("--model", type=Path, help=argparse.SUPPRESS)
    add("--requests", type=Path, help=argparse.SUPPRESS)
    add_path_flags(parser)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them.

    Raises:
        CannotMeasure: A run failed, or did not generate all tokens.
    """
    if flags.quick:
        flags.prompts, flags.sizes, flags.rounds = 12, (4, 8), 1
        flags.prompt_tokens, flags.new_tokens = 12, 6
    before = machine()
    with tempfile.TemporaryDirectory(dir=flags.workdir) as folder:
        work = Path(folder)
        size = TINY if flags.quick else SMALL
        make(work, size)
        requests = write_requests(work / "requests.jsonl", size.vocabulary, flags)
        rates: dict[str, list[float]] = {}
        for number in range(flags.rounds):
            for batch in flags.sizes:
                rate = _engine(work, batch, flags)
                rates.setdefault(f"engine, batches of {batch}", []).append(rate)
            rates.setdefault("batch", []).append(_command(work, number, requests, flags))
    best = {name: max(several) for name, several in rates.items()}
    ratio = best["batch"] / max(rate for name, rate in best.items() if name != "batch")
    rows = [(name, f"{rate:.1f}") for name, rate in best.items()]
    print(table(("", "tokens/s"), rows), f"\nbatch / best engine: {ratio:.3f} (>= {TARGET})")
    failure = None
    if ratio < TARGET and not flags.quick:
        failure = f"Bulk work reaches {ratio:.3f} of the engine's tokens/s, not {TARGET}."
    return {
        "rates": rates,
        "ratio": ratio,
        "target": TARGET,
        "tokens": sum(requests),
        "machine": [before, machine()],
        "failure": failure,
    }


def write_requests(path: Path, vocabulary: int, flags: argparse.Namespace) -> list[int]:
    """Write the requests of unequal lengths; return the tokens of each reply."""
    chance, counts = random.Random(1), []
    with path.open("w") as file:
        for number in range(flags.prompts):
            tokens = chance.randint(1, flags.prompt_tokens)
            counts.append(chance.randint(flags.new_tokens // 4, flags.new_tokens))
            body = {
                "model": "model",
                "prompt": [chance.randint(4, vocabulary - 1) for _ in range(tokens)],
                "max_tokens": counts[-1],
                "ignore_eos": True,
                "temperature": 0,
            }
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")
    return counts


def measure_engine(flags: argparse.Namespace) -> dict[str, float]:
    """Return the tokens and the seconds of the engine alone, in this process."""
    from predictor.engine.generation.sampling_params import SamplingParams

    bodies = [json.loads(line)["body"] for line in flags.requests.read_text().splitlines()]
    mean = sum(len(body["prompt"]) + body["max_tokens"] for body in bodies) / len(bodies)
    given: dict[str, Any] = {
        "model_dir": flags.model,
        "max_model_len": _LENGTH,
        "max_batch_size": flags.engine,
        "max_concurrency": -(-int(flags.engine * mean) // _LENGTH),
    }
    if flags.streamed:
        given["max_memory"] = json.dumps(_BUDGET)
    _, _, started = bring_up(given)
    began = time.perf_counter()
    listening = [Listening(lambda: None) for _ in bodies]
    for body, listener in zip(bodies, listening, strict=True):
        params = SamplingParams(body["max_tokens"], ignore_eos=True)
        started.engine.submit(body["prompt"], params, listener)
    tokens = sum(len(listener.wait()) for listener in listening)
    return {"tokens": tokens, "seconds": time.perf_counter() - began}


def _engine(work: Path, size: int, flags: argparse.Namespace) -> float:
    argv = [sys.executable, __file__, f"--engine={size}", f"--model={work}"]
    argv.append(f"--requests={work / 'requests.jsonl'}")
    finished = run([*argv, *(["--streamed"] if flags.streamed else [])])
    if finished.returncode != 0:
        raise CannotMeasure(f"The engine failed: {finished.last_words}")
    numbers: Mapping[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return numbers["tokens"] / numbers["seconds"]


def _command(work: Path, number: int, requests: Sequence[int], flags: argparse.Namespace) -> float:
    output = work / f"results-{number}.jsonl"
    argv = [sys.executable, "-m", "predictor", "batch", f"--model_dir={work}"]
    argv += [f"--input={work / 'requests.jsonl'}", f"--output={output}"]
    argv.append(f"--max_model_len={_LENGTH}")
    if flags.streamed:
        argv.append(f"--max_memory={json.dumps(_BUDGET)}")
    finished = run(argv)
    if finished.returncode != 0:
        raise CannotMeasure(f"predictor batch failed: {finished.last_words}")
    results = [json.loads(line) for line in output.read_text().splitlines()]
    bodies = [result["response"]["body"] for result in results]
    if sum(body["usage"]["completion_tokens"] for body in bodies) != sum(requests):
        raise CannotMeasure("predictor batch generated another number of tokens.")
    return float(_RATE.findall(finished.stderr)[-1])


if __name__ == "__main__":
    sys.exit(main())
