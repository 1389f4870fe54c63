"""What the engines decide between forward passes: planning, hang-ups, batches of texts, sampling.

No model runs here. The queues are as long as a server's limits allow, and the logits are random.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import finish, machine, table

from predictor.engine.encoding.batching import BatchLimits, TextQueue
from predictor.engine.generation.batch_sampler import BatchSampler
from predictor.engine.generation.forward_passes import SchedulerLimits
from predictor.engine.generation.grammar import Grammars, Vocabulary, executor
from predictor.engine.generation.sampler import Sampler
from predictor.engine.generation.sampling_params import SamplingParams
from predictor.engine.generation.scheduler import Scheduler
from predictor.engine.generation.token_mask import TokenMask

TARGETS = {
    "plan_ms": 1.0,
    "hang_ups_ms": 50.0,
    "lone_text_passes": 2,
    "lone_sequence_turns": 2,
    "masks_ms": 2.0,
}
"""The most that each may be; that of masks is 2 % of a forward pass of 100 ms."""

LIMITS = SchedulerLimits(kv_tokens=16_384, sequences=64, chunk=512, breakeven_tokens=64)
TEXTS = BatchLimits(tokens=4096, rows=64, breakeven_tokens=200, bucket_shapes=True)
CALLERS, LIST = 32, 256
MASKED_ROWS = 32
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 16}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "array",
    "items": PERSON,
    "minItems": 999,
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}
PEOPLE = f'%llguidance {{"no_forcing": true}}\nstart: %json {json.dumps(SCHEMA)}'

KINDS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{}],
    "temperature 0.7, top_p 0.9": [{"temperature": 0.7, "top_p": 0.9}],
    "mixed": [
        {},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 40},
        {"repetition_penalty": 1.1},
    ],
    "logprobs 5": [{"logprobs": 5}],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    flags = _parser().parse_args(arguments)
    return finish(lambda: measure(flags), flags.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--waiting", type=int, default=32_768, help="sequences that wait while steps are planned")
    add("--hang-ups", type=int, default=8192, help="waiting sequences that are removed")
    add("--texts", type=int, default=8192, help="texts that wait for an encoder")
    add("--rows", type=int, nargs="+", default=[1, 8, 64], help="rows that are sampled")
    add("--vocabulary", type=int, nargs="+", default=[32_768, 131_072], help="tokens")
    add("--rounds", type=int, default=20, help="times that each is measured; the median counts")
    add("--json", type=Path, help="the file to write the numbers to")
    return parser


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all numbers, after printing them."""
    before = machine()
    numbers: dict[str, Any] = {
        "plan_ms": plan_ms(flags.waiting, flags.rounds),
        "hang_ups_ms": hang_ups_ms(flags.hang_ups),
        "take_batch_ms": take_batch_ms(flags.texts),
        "lone_text_passes": lone_text_passes(flags.rounds),
        "lone_sequence_turns": lone_sequence_turns(flags.rounds),
        **mask_costs(max(flags.vocabulary), flags.rounds),
    }
    rows = [[name, f"{value:.3g}", _target(name)] for name, value in numbers.items()]
    print(table(("queues", "measured", "at most"), rows))
    sampling = [
        {"kind": kind, "rows": rows, "vocabulary": size, "ms": sample_ms(kind, rows, size, flags)}
        for kind in KINDS
        for size in flags.vocabulary
        for rows in flags.rows
    ]
    cells = [[one["kind"], one["vocabulary"], one["rows"], f"{one['ms']:.3f}"] for one in sampling]
    columns = ("sampling", "vocabulary", "rows", "ms")
    print("\n" + table(columns, [[str(cell) for cell in row] for row in cells]))
    missed = [name for name, most in TARGETS.items() if numbers[name] > most]
    failure = f"Over the target: {', '.join(missed)}." if missed else None
    result = {"sampling": sampling, "targets": TARGETS, "machine": [before, machine()]}
    return numbers | result | {"failure": failure}


def _target(name: str) -> str:
    return str(TARGETS.get(name, "-"))


def plan_ms(waiting: int, rounds: int) -> float:
    """Time a step in which one sequence ends and another takes its place, while others wait."""
    scheduler = Scheduler(LIMITS)
    for key in range(waiting + LIMITS.sequences + rounds):
        scheduler.add(key, 200, request=key // LIST)
    scheduler.plan()
    times = []
    for _ in range(rounds):
        scheduler.remove(next(iter(scheduler.running_keys)))
        times.append(_ms(scheduler.plan))
    return _median(times)


def hang_ups_ms(count: int) -> float:
    """Time the removal of waiting sequences, in any order, and the step that follows."""
    scheduler, keys = Scheduler(LIMITS), list(range(count))
    for key in keys:
        scheduler.add(key, 200, request=key // LIST)
    random.Random(1).shuffle(keys)

    def hang_up() -> None:
        for key in keys:
            scheduler.remove(key)
        scheduler.plan()

    return _ms(hang_up)


def take_batch_ms(count: int) -> float:
    """Time the choice of a forward pass's texts: the mean, until none waits."""
    queue, chance = TextQueue(TEXTS), random.Random(2)
    for key in range(count):
        queue.add(key, chance.randint(2, 400), request=key // LIST)
    times = []
    while len(queue):
        times.append(_ms(queue.take_batch))
    return sum(times) / len(times)


def lone_text_passes(rounds: int) -> int:
    """Return in which forward pass a lone text runs that arrives behind lists, at the worst."""
    queue, chance = TextQueue(TEXTS), random.Random(3)
    for key in range(CALLERS * LIST):
        queue.add(key, chance.randint(2, 400), request=key // LIST)
    return max(_turns(queue, -1 - lone) for lone in range(rounds))


def _turns(queue: TextQueue, lone: int) -> int:
    queue.add(lone, 4)
    passes = 1
    while lone not in queue.take_batch():
        passes += 1
    return passes


def lone_sequence_turns(rounds: int) -> int:
    """Return which free place a lone sequence gets that arrives behind lists, at the worst."""
    scheduler = Scheduler(LIMITS)
    for key in range(CALLERS * LIST):
        scheduler.add(key, 20, request=key // LIST)
    scheduler.plan()
    worst = 0
    for lone in range(-rounds, 0):
        scheduler.add(lone, 20)
        turns = 0
        while lone not in scheduler.running_keys:
            scheduler.remove(min(scheduler.running_keys - {lone}))
            scheduler.plan()
            turns += 1
        worst = max(worst, turns)
    return worst


def sample_ms(kind: str, rows: int, vocabulary: int, flags: argparse.Namespace) -> float:
    """Time the sampling of the next tokens of a forward pass."""
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(4)) * 4
    params = [KINDS[kind][row % len(KINDS[kind])] for row in range(rows)]
    samplers = [Sampler(SamplingParams(100, **each), range(200)) for each in params]
    batch = BatchSampler()
    for _ in range(2):
        batch.sample(samplers, logits)
    return _median([_ms(lambda: batch.sample(samplers, logits)) for _ in range(flags.rounds)])


def mask_costs(size: int, rounds: int) -> dict[str, float]:
    """Time what the masks of a schema add to sampling, and what they take beside a forward pass.

    Both are processor time in ms, of one thread and of the threads of masks. The logits are random,
    so most choices break the schema and are replaced.
    """
    grammars, batch = Grammars(_vocabulary(size)), BatchSampler()
    matcher = grammars.matcher(PEOPLE)
    logits = [torch.randn(MASKED_ROWS, size) for _ in range(3)]
    free = [Sampler(SamplingParams(9), [0]) for _ in range(MASKED_ROWS)]
    threads, added, beside = torch.get_num_threads(), [], []
    torch.set_num_threads(1)
    with executor("masks", 2) as pool:
        masks = [TokenMask(matcher.deep_copy(), size, (0,), pool) for _ in range(MASKED_ROWS)]
        bound = [Sampler(SamplingParams(9), [0], frozenset([0]), mask) for mask in masks]
        for number in range(2 * rounds):
            given = logits[number % len(logits)]
            all(mask.allowed() for mask in masks)
            without, _ = _processor_ms(partial(batch.sample, free, given))
            own, process = _processor_ms(partial(_sample_all, batch, bound, given))
            added.append(own - without)
            beside.append(process - own)
    torch.set_num_threads(threads)
    return {"masks_ms": _median(added), "mask_threads_ms": _median(beside)}


def _vocabulary(size: int) -> Vocabulary:
    """Return an end token, all bytes, and random words of 2 to 9 letters."""
    chance = random.Random(6)
    tokens = [b"</s>", *(bytes([byte]) for byte in range(256))]
    while len(tokens) < size:
        word = "".join(chance.choices("etaoinshrdlucmfwygpbvkjxqz", k=chance.randint(2, 9)))
        tokens.append(chance.choice(("", " ")).encode() + word.encode())
    return Vocabulary(tuple(tokens), (0,))


def _sample_all(batch: BatchSampler, samplers: Sequence[Sampler], logits: torch.Tensor) -> None:
    """Sample, and wait for the next masks."""
    batch.sample(samplers, logits)
    all(sampler.mask.allowed() for sampler in samplers if sampler.mask)


def _processor_ms(action: Callable[[], object]) -> tuple[float, float]:
    """Return the processor time of this thread, and of the process."""
    own, process = time.thread_time(), time.process_time()
    action()
    return 1000 * (time.thread_time() - own), 1000 * (time.process_time() - process)


def _ms(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - began)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    sys.exit(main())
