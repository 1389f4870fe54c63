"""A class of a checkpoint's own code takes what its parents take, if it hands it on."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from predictor.private.forward_arguments import forward_arguments

CONFIG = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)


class HandsOn(LlamaForCausalLM):
    def forward(self, input_ids: Any, **kwargs: Any) -> Any:
        return super().forward(input_ids, **kwargs)


class HandsOnTwice(HandsOn):
    def forward(self, *args: Any, own: int = 0, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Takes(LlamaForCausalLM):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:
        return super().forward(input_ids, past_key_values=past_key_values)


@pytest.mark.parametrize("kind", [HandsOn, HandsOnTwice])
def test_arguments_that_are_handed_on_are_taken(kind: type[LlamaForCausalLM]) -> None:
    taken = forward_arguments(kind(CONFIG))
    assert forward_arguments(LlamaForCausalLM(CONFIG)) <= taken
    assert {"position_ids", "attention_mask", "past_key_values", "logits_to_keep"} <= taken


def test_other_arguments_are_not_taken() -> None:
    assert forward_arguments(Takes(CONFIG)) == {"input_ids", "past_key_values"}
    small = BloomForCausalLM.config_class(vocab_size=8, hidden_size=8, n_layer=1, n_head=1)
    assert "position_ids" not in forward_arguments(BloomForCausalLM(small))
