"""Measure which experts a made mixture chooses, as its own process, and simulate caches of them.

Prints one JSON object. The first layers run with transformers, without a memory limit, over the
tokens that users would generate. Published figures to compare with: an LRU cache with slots for 9
to 16 % of DeepSeek-V4-Flash's experts hits 69 to 75 %, with 12 % of Qwen3.8-Flash-Next's 67 %.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from predictor.weights.experts.slot_policy import SlotPolicy

Choices = list[list[int]]
"""The experts of each token at one layer."""

_LAYERS, _TOKENS, _USERS, _SHARES = 4, 96, (1, 4, 8, 16, 32), (0.16, 0.25)


def main() -> None:
    """Measure the routing of models and print it, by the name of their folders."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", type=Path, nargs="+")
    measured = {}
    for folder in parser.parse_args().checkpoints:
        config = json.loads((folder / "config.json").read_text())
        measured[folder.name] = measure(_choices(folder, config), int(config["num_experts"]))
    print("\n" + json.dumps(measured))


def _choices(checkpoint: Path, config: dict[str, Any]) -> list[list[Choices]]:
    """Return each layer's choices for each user, who begin at different places of the walk."""
    import torch
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()  # it warns of each weight of the layers that are left out
    logging.disable_progress_bar()
    count = min(_LAYERS, config["num_hidden_layers"])
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype="auto", local_files_only=True, num_hidden_layers=count
    )
    apart = config["vocab_size"] // max(_USERS)
    starts = torch.arange(max(_USERS)) * apart
    tokens = (starts[:, None] + torch.arange(_TOKENS)) % config["vocab_size"]
    with torch.inference_mode():
        logits = model.model(tokens, output_router_logits=True).router_logits
    chosen = [scores.topk(config["num_experts_per_tok"]).indices for scores in logits]
    return [layer.view(len(starts), _TOKENS, -1).tolist() for layer in chosen]


def measure(
    layers: Sequence[Sequence[Choices]],
    experts: int,
    *,
    users: Sequence[int] = _USERS,
    shares: Sequence[float] = _SHARES,
) -> dict[str, Any]:
    """Return the layers' mean overlap, skew and hit rates, and what several users share.

    Returns:
        `overlap`: share of a token's experts that the token before used too. `skew`: share of all
        uses that goes to the most used quarter of a layer's experts. `caches`: hit rates of LRU and
        of the predictor's policy, by the share of experts that stay. `union`: experts of a pass.
    """
    return {
        "overlap": _mean([_overlap(layer[0]) for layer in layers]),
        "skew": _mean(
            [_skew([one for user in layer for one in user], experts) for layer in layers]
        ),
        "caches": [_cache(layers, experts, share, users) for share in shares],
        "union": {
            count: _mean([_mean([len(one) for one in _union(layer, count)]) for layer in layers])
            for count in users
        },
    }


def _overlap(choices: Choices) -> float:
    return _mean([len({*one} & {*two}) / len(two) for one, two in pairwise(choices)])


def _skew(choices: Choices, experts: int) -> float:
    uses = Counter(expert for one in choices for expert in one)
    return sum(count for _, count in uses.most_common(experts // 4)) / uses.total()


def _cache(
    layers: Sequence[Sequence[Choices]], experts: int, share: float, users: Sequence[int]
) -> dict[str, Any]:
    """Return the hit rates of caches of a share of the experts, by the number of users."""
    slots = round(share * experts)
    rates: dict[str, Any] = {"share": share, "slots": slots, "lru": {}, "policy": {}}
    for count in users:
        passes = [_union(layer, count) for layer in layers]
        used = sum(len(touched) for layer in passes for touched in layer)
        rates["lru"][count] = sum(_lru_hits(layer, slots) for layer in passes) / used
        policy_hits = sum(_policy_hits(layer, experts, slots) for layer in passes)
        rates["policy"][count] = policy_hits / used
    return rates


def _policy_hits(passes: Choices, experts: int, slots: int) -> int:
    policy = SlotPolicy(experts, slots)
    return sum(len(policy.step(touched).hits) for touched in passes)


def _union(users: Sequence[Choices], count: int) -> Choices:
    """Return the distinct experts of each pass, in which so many users have a token each."""
    return [sorted(set().union(*tokens)) for tokens in zip(*users[:count], strict=True)]


def _lru_hits(passes: Choices, slots: int) -> int:
    cached: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for touched in passes:
        hits += sum(expert in cached for expert in touched)
        for expert in touched:
            cached[expert] = None
            cached.move_to_end(expert)
        while len(cached) > slots:
            cached.popitem(last=False)
    return hits


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
