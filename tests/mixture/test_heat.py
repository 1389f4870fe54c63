"""The heat of experts: exact numbers, and what a forward pass counts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from transformers import AutoModelForCausalLM

from predictor.mixture.forward import compute_here, count_tokens
from predictor.mixture.heat import ExpertHeat, LayerHeat
from predictor.mixture.modules import find_experts
from predictor.profiling.blocks import find_blocks
from tests.mixture.families import ROUTED, family_config


@dataclass
class Slotted:
    name: str
    in_slots: dict[str, tuple[int, ...]] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ((0, 0, 0), 0.0),
        ((1, 3, 0), 0.75),
        ((2,) * 10, 0.1),
        ((2,) * 10 + (10,), 12 / 30),
        ((0,) * 19 + (7,), 1.0),
    ],
)
def test_the_hottest_are_a_tenth_of_the_experts_and_at_least_one(
    tokens: tuple[int, ...], share: float
) -> None:
    assert LayerHeat("layer", tokens, {}).hottest_share == share


def test_the_heat_is_that_of_the_moment_and_slots_are_those_of_the_layer() -> None:
    tokens = {"first": [0, 0], "second": [0, 0]}
    layer = Slotted("second", {"cpu": (0,)})
    heat = ExpertHeat(tokens, [layer])
    before = heat.read()
    tokens["first"][1] += 4
    layer.in_slots = {"cpu": (1,)}

    assert before == (LayerHeat("first", (0, 0), {}), LayerHeat("second", (0, 0), {"cpu": (0,)}))
    assert heat.read() == (
        LayerHeat("first", (0, 4), {}),
        LayerHeat("second", (0, 0), {"cpu": (1,)}),
    )


@torch.inference_mode()
def test_each_token_counts_for_the_experts_that_it_uses_once_counting_has_begun() -> None:
    model = AutoModelForCausalLM.from_config(family_config("mixtral")).eval()
    layers = find_experts(model, find_blocks(model)).values()
    ids = torch.tensor([[7, 3, 11, 2, 19, 5]])
    compute_here(model)
    model(input_ids=ids, use_cache=False)
    tokens = count_tokens(model)
    assert list(tokens) == [layer.name for layer in layers]
    assert {sum(counts) for counts in tokens.values()} == {0}
    model(input_ids=ids, use_cache=False)
    assert {sum(counts) for counts in tokens.values()} == {ids.numel() * ROUTED}


def test_what_is_not_computed_here_is_not_counted() -> None:
    assert count_tokens(AutoModelForCausalLM.from_config(family_config("mixtral"))) == {}
