"""How long a sequence may be: a config's positions, and by how much its RoPE extends them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig

_POSITIONS = ("max_position_embeddings", "n_positions")
_CONTEXT = (*_POSITIONS, "seq_length", "max_sequence_length", "max_seq_len")
_LONGEST_DEFAULT = 8192

_EXTENDING = frozenset({"linear", "yarn", "llama3", "proportional"})
"""Types of RoPE whose angles are stretched by a factor, equally in all forward passes."""

_SWITCHING = frozenset({"longrope", "su"})
"""Types of RoPE with other angles beyond their original length; the second is an older name."""


def context_length(config: PreTrainedConfig) -> int:
    """Return the default `max_model_len`: the model's own context, at most 8192 tokens."""
    declared = _first_number(config, _POSITIONS)
    limits = [_switch(rope) for rope in _ropes(config)]
    own = min([limit for limit in (declared, *limits) if limit], default=None)
    return min(own or _first_number(config, _CONTEXT) or 2048, _LONGEST_DEFAULT)


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the most positions that can be served; None if the model has no limit (ALiBi).

    RoPE that is stretched by a factor extends the config's positions. It does so if it does in all
    layers. LongRoPE and dynamic NTK do not: beyond a length, transformers rotates all positions of
    a forward pass by other angles (``longrope_frequency_update`` and ``dynamic_frequency_update``
    in ``modeling_rope_utils.py``). These fit neither the KV cache nor the other sequences of the
    batch.
    """
    declared = _first_number(config, _POSITIONS)
    limits = [_limit(rope, declared) for rope in _ropes(config)]
    return min([limit for limit in limits if limit], default=declared)


def _limit(rope: Mapping[str, Any], declared: int | None) -> int | None:
    """Return the most positions with one RoPE."""
    switch = _switch(rope)
    if switch is not None:
        return min(switch, declared or _LONGEST_DEFAULT)
    original = rope.get("original_max_position_embeddings") or declared
    factor = rope.get("factor") if _kind(rope) in _EXTENDING else None
    if declared is None or not original or not factor:
        return declared
    return max(declared, int(original * factor))


def _switch(rope: Mapping[str, Any]) -> int | None:
    """Return the length beyond which a RoPE has other angles; None if there is none."""
    original = rope.get("original_max_position_embeddings")
    return int(original) if original and _kind(rope) in _SWITCHING else None


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _ropes(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """Return the parameters of RoPE: one mapping, or one for each type of layer."""
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(parameters, Mapping):
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]


def _first_number(config: PreTrainedConfig, names: Iterable[str]) -> int | None:
    """Return the first of these attributes that the text model's config sets to a length."""
    text = config.get_text_config(decoder=True)
    numbers = (getattr(text, name, None) for name in names)
    return next((int(number) for number in numbers if number and number > 0), None)
