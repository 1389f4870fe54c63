"""What a model keeps of a sequence by its config, and whether that can be batched."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from predictor.private.cache_layers import (
    HYBRID_KINDS,
    KINDS,
    STATE_KINDS,
    cache_argument,
    cache_layers,
    takes_dynamic_cache,
)
from predictor.private.forward_arguments import forward_arguments
from predictor.private.transformers import is_stateful


def unbatchable_reason(model: PreTrainedModel) -> str | None:
    """Return why the model cannot be batched, by its class and config; None if it can."""
    if not cache_argument(model):
        return "its forward pass takes no past_key_values"
    if "attention_mask" not in forward_arguments(model):
        return "its forward pass takes no attention_mask"
    if not takes_dynamic_cache(model):
        return "it makes a cache of its own"
    if attends_to_whole_prompt(model):
        return "each token of a prompt attends to all of it"
    kinds = {layer.kind for layer in cache_layers(model)}
    if kinds - KINDS:
        return f"it has layers of the kind {sorted(kinds - KINDS)[0]}"
    if is_stateful(model) and kinds.isdisjoint(STATE_KINDS | HYBRID_KINDS):
        return "it keeps a state that cannot be shared"
    return None


def attends_to_whole_prompt(model: PreTrainedModel) -> bool:
    """Return whether tokens of a prompt attend to later ones too, which those of a reply never do.

    PaliGemma's do. Such a prompt is computed in one forward pass.
    """
    config: Any = model.config.get_text_config(decoder=True)
    return getattr(config, "use_bidirectional_attention", None) in (True, "all")


def keeps_state(model: PreTrainedModel) -> bool:
    """Return whether the model keeps a state besides keys and values, in its cache or elsewhere."""
    kinds = {layer.kind for layer in cache_layers(model)}
    return is_stateful(model) or not kinds.isdisjoint(STATE_KINDS | HYBRID_KINDS)
