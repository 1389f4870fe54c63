"""Routings to simulate slot policies with: the distinct experts of each pass at one layer."""

from __future__ import annotations

import random
import textwrap
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from string import ascii_letters, digits

Routing = list[list[int]]

RECORDED = Path(__file__).with_name("routing.txt")
"""Written by `record_routing`: four of 64 experts for each token, a character for each expert."""

_CHARACTERS = ascii_letters + digits + "+/"


def zipf(experts: int, routed: int, passes: int, *, skew: float, drift: int = 0) -> Routing:
    """Return independent choices by Zipf's law; after `drift` passes other experts are popular."""
    source = random.Random(0)
    popularity = [1 / rank**skew for rank in range(1, experts + 1)]
    routing = []
    for index in range(passes):
        if index == 0 or (drift and index % drift == 0):
            source.shuffle(popularity)
        # Efraimidis and Spirakis: the largest of u^(1/w) are a weighted sample.
        keys = [source.random() ** (1 / weight) for weight in popularity]
        routing.append(_largest(keys, routed))
    return routing


def correlated(
    experts: int,
    routed: int,
    passes: int,
    *,
    keep: float,
    bias: float,
    drift: int = 0,
    seed: int = 0,
) -> Routing:
    """Return choices by scores of which each pass keeps a share, plus each expert's popularity."""
    source = random.Random(seed)
    popularity = [source.gauss(0, bias) for _ in range(experts)]
    state = [source.gauss(0, 1) for _ in range(experts)]
    fresh = (1 - keep**2) ** 0.5
    routing = []
    for index in range(passes):
        if drift and index and index % drift == 0:
            source.shuffle(popularity)
        state = [keep * value + fresh * source.gauss(0, 1) for value in state]
        scores = [value + fixed for value, fixed in zip(state, popularity, strict=True)]
        routing.append(_largest(scores, routed))
    return routing


def cyclic(cycle: int, routed: int, passes: int) -> Routing:
    """Return the experts of a cycle in turn, the worst case for a cache smaller than the cycle."""
    return [[(index * routed + one) % cycle for one in range(routed)] for index in range(passes)]


def union(*routings: Routing) -> Routing:
    """Return the routing of several users in one batch."""
    return [sorted(set().union(*touched)) for touched in zip(*routings, strict=True)]


def with_prefills(routing: Routing, experts: int, *, every: int, share: float) -> Routing:
    """Return a routing with two chunks of a prompt, that use a share of all experts, in between."""
    source, mixed = random.Random(0), []
    for index, touched in enumerate(routing):
        if index % every == every - 1:
            count = round(share * experts)
            mixed += [sorted(source.sample(range(experts), count)) for _ in range(2)]
        mixed.append(touched)
    return mixed


def read_routing(path: Path) -> Routing:
    """Return a recorded routing with four experts for each token."""
    experts = [_CHARACTERS.index(character) for character in "".join(path.read_text().split())]
    return [experts[at : at + 4] for at in range(0, len(experts), 4)]


def write_routing(path: Path, routing: Routing) -> None:
    """Write a routing of at most 64 experts."""
    text = "".join(_CHARACTERS[expert] for touched in routing for expert in touched)
    path.write_text("\n".join(textwrap.wrap(text, 96)) + "\n")


def best_static_hits(routing: Routing, quota: int) -> int:
    """Return the hits of the one set that has most, known only afterwards."""
    uses = Counter(expert for touched in routing for expert in touched)
    return sum(count for _, count in uses.most_common(quota))


def lru_hits(routing: Routing, quota: int) -> int:
    """Return the hits of a cache that evicts what was used least recently."""
    cached: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for touched in routing:
        hits += sum(expert in cached for expert in touched)
        for expert in touched:
            cached[expert] = None
            cached.move_to_end(expert)
        while len(cached) > quota:
            cached.popitem(last=False)
    return hits


def _largest(scores: Sequence[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=scores.__getitem__)[-count:]
