"""Runs transformers' own conversions of stored tensors on the meta device, to learn their shapes.

Read in transformers 5.23.0: ``core_model_loading.py`` (`convert_and_load_state_dict_in_model`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from predictor.errors import reason_of
from predictor.private.conversions import merges_whole
from predictor.private.stored_names import CheckpointNames

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class MadeParameter:
    """What `from_pretrained` makes of stored tensors.

    Attributes:
        sources: The stored names, in transformers' order, by the pattern of the conversion that
            takes them; the pattern of a tensor that is loaded as it is stored is None.
        shape: The shape; None if the conversion fails.
        reason: The conversion's error message; empty unless it fails.
    """

    sources: Mapping[str | None, tuple[str, ...]]
    shape: tuple[int, ...] | None
    reason: str = ""

    @property
    def first_source(self) -> str:
        """The first of the stored names."""
        return next(iter(self.sources.values()))[0]


def make_parameters(
    model: PreTrainedModel, names: CheckpointNames, stored: Mapping[str, torch.Tensor]
) -> dict[str, MadeParameter]:
    """Return the parameters that `from_pretrained` would make of stored tensors, by name.

    Args:
        model: The model, on the meta device.
        names: The names of its parameters.
        stored: The stored tensors, on the meta device.
    """
    sources: dict[str, dict[str | None, list[str]]] = {}
    for name in stored:
        target, pattern = names.parameter(name)
        if target is not None:
            sources.setdefault(target, {}).setdefault(pattern, []).append(name)
    made: dict[str, MadeParameter] = {}
    merges: dict[tuple[Any, ...], MadeParameter] = {}
    for target, by_pattern in sources.items():
        if None not in by_pattern:
            for alike in by_pattern.values():
                alike.sort(key=names.order)
        ordered = {pattern: tuple(alike) for pattern, alike in by_pattern.items()}
        key = _merge_key(names, ordered, stored)
        if key is not None and key in merges:
            made[target] = replace(merges[key], sources=ordered)
            continue
        results = _make(model, names, target, ordered, stored)
        if key is not None and target in results:
            merges[key] = results[target]
        made |= results
    return made


def _merge_key(
    names: CheckpointNames,
    sources: Mapping[str | None, tuple[str, ...]],
    stored: Mapping[str, torch.Tensor],
) -> tuple[Any, ...] | None:
    """Return what decides the shape of merged experts, which many layers have in common.

    None for parameters that are not merged: other conversions may depend on names.
    """
    if any(each is None or not merges_whole(names.converters[each]) for each in sources):
        return None
    return tuple(
        (pattern, len(alike), *sorted({tuple(stored[name].shape) for name in alike}))
        for pattern, alike in sources.items()
    )


def _make(
    model: PreTrainedModel,
    names: CheckpointNames,
    target: str,
    sources: Mapping[str | None, tuple[str, ...]],
    stored: Mapping[str, torch.Tensor],
) -> dict[str, MadeParameter]:
    """Return the parameters that are made of tensors which go to the same parameter first."""
    pattern = next((pattern for pattern in sources if pattern is not None), None)
    if pattern is None:
        first = stored[next(iter(sources.values()))[0]]
        return {target: MadeParameter(sources, tuple(first.shape))}
    converter: Any = copy.deepcopy(names.converters[pattern])
    for each, alike in sources.items():
        for name in alike:
            converter.add_tensor(target, name, each or name, stored[name])
    try:
        results = converter.convert(target, model=model, config=model.config)
    # Conversions fail with errors of many classes.
    except Exception as error:
        return {target: MadeParameter(sources, None, reason_of(error))}
    return {
        name: MadeParameter(sources, tuple((one[0] if isinstance(one, list) else one).shape))
        for name, one in results.items()
    }


def ignored_when_missing(model: PreTrainedModel) -> frozenset[str]:
    """Return the patterns of names that need not be stored, such as those of computed positions."""
    return frozenset(model._keys_to_ignore_on_load_missing or ())
