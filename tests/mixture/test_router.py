"""The experts of the next layer are guessed by its own router."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from predictor.mixture.modules import find_experts
from predictor.mixture.parameters import input_width
from predictor.mixture.router import router_of
from predictor.profiling.blocks import find_blocks
from tests.conftest import Checkpoints


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_a_guess_from_the_routers_own_input_is_mostly_right(
    mixtures: Checkpoints, name: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixtures(name), dtype=torch.float32).eval()
    blocks = find_blocks(model)
    experts = list(find_experts(model, blocks).values())[-1]
    width = input_width(model.get_submodule(experts.name))
    guess = router_of(model, experts.name, experts.count, experts.routed, width)
    assert guess is not None
    right = total = 0
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module = model.get_submodule(experts.name)
    module.register_forward_pre_hook(lambda _, args: seen.append(args[:2]))
    with torch.inference_mode():
        for token in range(3, 60):
            model(torch.tensor([[token]]), use_cache=False)
        for hidden_states, chosen in seen:
            actual = set(chosen.flatten().tolist())
            right += len(actual & set(guess(hidden_states)))
            total += len(actual)
    # DeepSeek's routers choose among groups, and correct the scores that they choose by.
    assert right / total >= (0.5 if name == "deepseek_v3" else 1.0)


def test_a_router_of_another_width_or_not_in_memory_guesses_nothing(mixtures: Checkpoints) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixtures("mixtral"))
    experts = next(iter(find_experts(model, find_blocks(model)).values()))
    width = input_width(model.get_submodule(experts.name))
    assert router_of(model, experts.name, experts.count, experts.routed, width + 1) is None
    assert router_of(model.to("meta"), experts.name, experts.count, experts.routed, width) is None
