"""How long a sequence may be: a config's positions, and how its RoPE extends them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig

_POSITIONS = ("max_position_embeddings", "n_positions")
_CONTEXT = (*_POSITIONS, "seq_length", "max_sequence_length", "max_seq_len")
_LONGEST_DEFAULT = 8192

_STRETCHED = frozenset({"linear", "yarn", "llama3", "proportional"})
"""Types of RoPE whose angles are stretched by a factor, equally in all forward passes."""

_LONGROPE, _DYNAMIC = "longrope", "dynamic"
"""Types of RoPE with other angles beyond their original length."""

_SETS = {"short_factor": "long_factor", "short_mscale": "long_mscale"}
"""What LongRoPE has for short sequences, and in its place for long ones."""


def context_length(config: PreTrainedConfig) -> int:
    """Return the default `max_model_len`: the model's own context, at most 8192 tokens."""
    declared = _first_number(config, _POSITIONS)
    limits = (declared, equal_positions(config))
    own = min([limit for limit in limits if limit], default=None)
    return min(own or _first_number(config, _CONTEXT) or 2048, _LONGEST_DEFAULT)


def equal_positions(config: PreTrainedConfig) -> int | None:
    """Return the positions up to which RoPE rotates all sequences equally; None for all."""
    declared = _first_number(config, _POSITIONS)
    switches = (_switch(rope, declared) for rope in _ropes(config))
    return min((switch for switch in switches if switch), default=None)


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the most positions that can be served; None if the model has no limit (ALiBi).

    RoPE extends the config's positions if it does in all layers. That of code that comes with a
    model does not: it cannot be known to rotate all sequences equally, see `with_equal_angles`.
    """
    declared = _first_number(config, _POSITIONS)
    limits = [_limit(rope, declared, config) for rope in _ropes(config)]
    return min([limit for limit in limits if limit], default=declared)


def with_equal_angles(config: PreTrainedConfig, length: int) -> PreTrainedConfig:
    """Return the config of a model that rotates all sequences up to a length by the same angles.

    transformers chooses the angles of LongRoPE and dynamic NTK anew in each forward pass, by its
    longest sequence (``longrope_frequency_update`` and ``dynamic_frequency_update`` in
    ``modeling_rope_utils.py``). These fit neither the keys that are cached nor the other sequences
    of the batch. If the length is beyond the original one, all sequences get the angles of a
    sequence of that length, as in vLLM.

    Args:
        config: A model's config, which is not changed.
        length: Tokens of the longest sequence.
    """
    changed = copy.deepcopy(config)
    text: Any = changed.get_text_config(decoder=True)
    declared, is_dynamic = _first_number(config, _POSITIONS), False
    for layers, rope in _ropes_by_layers(changed):
        switch = _switch(rope, declared)
        if switch is None or length <= switch:
            continue
        if _kind(rope) == _LONGROPE:
            rope |= {short: rope[long] for short, long in _SETS.items() if long in rope}
        else:
            of_layers = _config_of(text, layers)
            rope |= {"rope_theta": _dynamic_base(rope, of_layers, length), "factor": 1.0}
            rope |= {"rope_type": "linear", "type": "linear"}
            is_dynamic = True
    if is_dynamic:  # the base of every RoPE was computed from the config's own length
        text.max_position_embeddings = length
    return changed


def _config_of(text: Any, layers: str | None) -> Any:
    """Return the config of a type of layers; that of all layers if they do not differ."""
    by_layers = getattr(text, "per_layer_config", None)
    try:
        return text if layers is None or by_layers is None else by_layers[layers]
    except (ValueError, LookupError, TypeError):
        return text


def _dynamic_base(rope: Mapping[str, Any], layers: Any, length: int) -> float:
    """Return the base of dynamic NTK at a length, as ``_compute_dynamic_ntk_parameters``."""
    head = getattr(layers, "head_dim", None) or layers.hidden_size // layers.num_attention_heads
    size = int(head * rope.get("partial_rotary_factor", 1.0))
    ratio = length / layers.max_position_embeddings
    stretched: float = (rope["factor"] * ratio - (rope["factor"] - 1)) ** (size / (size - 2))
    return float(rope["rope_theta"]) * stretched


def _limit(rope: Mapping[str, Any], declared: int | None, config: PreTrainedConfig) -> int | None:
    """Return the most positions with one RoPE."""
    switch = _switch(rope, declared)
    if switch is not None and not type(config).__module__.startswith("transformers."):
        return min(switch, declared or _LONGEST_DEFAULT)
    original = rope.get("original_max_position_embeddings") or declared
    is_extended = _kind(rope) in _STRETCHED or switch is not None
    factor = rope.get("factor") if is_extended else None
    if declared is None or not original or not factor:
        return declared
    return max(declared, int(original * factor))


def _switch(rope: Mapping[str, Any], declared: int | None) -> int | None:
    """Return the length beyond which a RoPE has other angles; None if there is none.

    That is the config's own length for dynamic NTK, unless the angles are fixed by ``alpha``.
    """
    if _kind(rope) == _DYNAMIC and not rope.get("alpha"):
        return declared
    original = rope.get("original_max_position_embeddings")
    return int(original) if original and _kind(rope) == _LONGROPE else None


def _kind(rope: Mapping[str, Any]) -> str:
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    return _LONGROPE if kind == "su" else kind  # its older name


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the parameters of RoPE: one mapping, or one for each type of layer."""
    return [rope for _, rope in _ropes_by_layers(config)]


def _ropes_by_layers(config: PreTrainedConfig) -> list[tuple[str | None, dict[str, Any]]]:
    """Return the parameters of RoPE with the type of their layers, which is None for all layers."""
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return []
    ropes: list[tuple[str | None, dict[str, Any]]] = [
        (str(layers), rope) for layers, rope in parameters.items() if isinstance(rope, dict)
    ]
    return ropes or [(None, parameters)]


def _first_number(config: PreTrainedConfig, names: Iterable[str]) -> int | None:
    """Return the first of these attributes that the text model's config sets to a length."""
    text = config.get_text_config(decoder=True)
    numbers = (getattr(text, name, None) for name in names)
    return next((int(number) for number in numbers if number and number > 0), None)
