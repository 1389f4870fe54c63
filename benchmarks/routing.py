"""Measure which experts a made mixture chooses, as its own process, and simulate caches of them.

Prints one JSON object. The first layers run with transformers, without a memory limit, over the
tokens that users would generate. Published figures to compare with: an LRU cache with slots for 9 to 16 %
of DeepSeek-V4-Flash's experts hits 69 to 75 %, with 12 % of Qwen3.8-Flash-Next's 67 %.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Choices = list[list[int]]
"""The experts of each token at one layer."""

_LAYERS, _TOKENS, _USERS, _SHARES = 4, 96, (1, 4, 8, 16, 32), (0.16, 0.25)


def main() -> None:
    """Measure a model's routing and print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    flags = parser.parse_args()
    config = json.loads((flags.checkpoint / "config.json").read_text())
    experts = int(config["num_experts"])
    print("\n" + json.dumps(measure(_choices(flags.checkpoint, config), experts)))


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


def measure(layers: Sequence[Sequence[Choices]], experts: int) -> dict[str, Any]:
    """Return the layers' mean overlap, skew and hit rates, and what several users share.

    Returns:
        `overlap`: share of a token's experts that the token before used too. `skew`: share of all
        uses that goes to the most used quarter of a layer's experts. `caches`: hit rates of LRU and
        of the predictor's policy, by the share of experts that stay. `union`: experts of a pass.
    """
    firsts = [users[0] for users in layers]
    return {
        "overlap": _mean([_overlap(choices) for choices in firsts]),
        "skew": _mean([_skew([one for user in users for one in user], experts) for users in layers]),
        "caches": [_cache(layers, experts, share) for share in _SHARES],
        "union": {
            count: _mean([_mean([len(one) for one in _union(users, count)]) for users in layers])
            for count in _USERS
        },
    }


def _overlap(choices: Choices) -> float:
    pairs = zip(choices, choices[1:], strict=False)
    return _mean([len(set(before) & set(after)) / len(after) for before, after in pairs])


def _skew(choices: Choices, experts: int) -> float:
    uses = Counter(expert for one in choices for expert in one)
    return sum(count for _, count in uses.most_common(experts // 4)) / uses.total()


def _cache(layers: Sequence[Sequence[Choices]], experts: int, share: float) -> dict[str, Any]:
    from predictor.weights.experts.slot_policy import SlotPolicy

    slots = round(share * experts)
    hit_rates: dict[str, Any] = {"share": share, "slots": slots, "lru": {}, "policy": {}}
    for count in _USERS:
        passes = [_union(users, count) for users in layers]
        used = sum(len(touched) for layer in passes for touched in layer)
        lru = sum(_lru_hits(layer, slots) for layer in passes)
        hits = 0
        for layer in passes:
            policy = SlotPolicy(experts, slots)
            hits += sum(len(policy.step(touched).hits) for touched in layer)
        hit_rates["lru"][count], hit_rates["policy"][count] = lru / used, hits / used
    return hit_rates


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
