"""The parts of `serving` that compare the server with itself; each is a benchmark of its own.

Such a module has a parser of its flags, `measure`, and `targets`, the measured values beside those
to reach. A number is worth something only if it was measured on a quiet machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Protocol

import adapters
import contexts
import drafts
import prefill
import prefixes
from measuring import CannotMeasure

Targets = list[dict[str, Any]]


class Benchmark(Protocol):
    """A benchmark that is a part."""

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of its flags."""
        ...

    def measure(self, flags: argparse.Namespace) -> dict[str, Any]:
        """Return all numbers, after printing them."""
        ...

    def targets(self, result: Mapping[str, Any]) -> Targets:
        """Return the measured values beside their targets."""
        ...


MORE_PARTS: dict[str, Benchmark] = {
    "prefix": prefixes,
    "lookup": drafts,
    "adapters": adapters,
    "contexts": contexts,
    "prefill": prefill,
}
"""A system prompt that users share; code to edit and documents to quote, with drafts; adapters
that share a forward pass; long contexts; long prompts of an offloaded model."""


def measure_more(
    flags: argparse.Namespace, failures: list[str]
) -> tuple[dict[str, dict[str, Any]], Targets]:
    """Measure those parts that are named; return their numbers by part, and their targets.

    Args:
        flags: The flags of `serving`.
        failures: Takes a sentence for each part that fails.
    """
    results: dict[str, dict[str, Any]] = {}
    reached: Targets = []
    for name, benchmark in MORE_PARTS.items():
        if name not in flags.parts:
            continue
        try:
            results[name] = benchmark.measure(benchmark.parser().parse_args(_flags(flags)))
        except CannotMeasure as error:
            failures.append(f"{name}: {error}")
            continue
        reached += [
            {"disturbed": False} | one | {"what": f"{name}, {one['what']}"}
            for one in benchmark.targets(results[name])
        ]
    return results, reached


def _flags(flags: argparse.Namespace) -> list[str]:
    """Return the flags that all parts have."""
    given = {
        "--workdir": [flags.workdir],
        "--mounts": [flags.mounts],
        "--limit": [flags.limit],
        "--budget": [flags.budget],
        "--users": flags.users or [None],
    }
    named = [
        text
        for name, values in given.items()
        if values[0] is not None
        for text in (name, *map(str, values))
    ]
    return [*named, *(["--quick"] if flags.quick else [])]
