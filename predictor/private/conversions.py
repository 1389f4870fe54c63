"""How transformers makes a model's parameters of a checkpoint's tensors: by names and conversions.

Read in transformers 5.23.0: ``core_model_loading.py``, ``conversion_mapping.py`` and
``quantizers/base.py``. `transformers` in this package declares what is used of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from predictor.private.model_classes import key_mapping_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MERGE, _CONCATENATE = ("MergeModulelist", 0), ("Concatenate", 1)
"""Steps of a conversion, and their dimension, that move whole tensors and change none."""


_PACKED = "packed_names"
"""The attribute of a model with packed layers that is their `PackedNames`."""


def converts_weights(model: PreTrainedModel, but: Collection[str] = ()) -> bool:
    """Return whether transformers changes stored tensors while it loads this model.

    It does for most mixtures of experts, whose experts it merges.

    Args:
        model: The model.
        but: Names of parameters whose merge does not count.
    """
    from transformers.core_model_loading import WeightConverter

    mapping = conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    return any(not (merges_whole(one) and _is_for(one, but)) for one in converters)


def _is_for(converter: Any, names: Collection[str]) -> bool:
    (target,) = converter.target_patterns
    return any(target.replace("\\", "") in name for name in names)


def merges_whole(converter: Any) -> bool:
    """Return whether a converter makes one parameter of whole stored tensors."""
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
    return len(converter.target_patterns) == 1 and steps in ([_MERGE], [_MERGE, _CONCATENATE])


def conversion_mapping(model: PreTrainedModel) -> list[Any]:
    """Return transformers' renamings and converters of stored tensors for this model."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    mapping = get_model_conversion_mapping(model, key_mapping_of(model))
    return packed_conversions(model, mapping or [])


Quantise = Callable[[list[Any]], dict[str, Any]]
"""Packs the one stored tensor of a matrix, or those of all experts; returns tensors by role."""


@dataclass(frozen=True, slots=True)
class QuantisedNames:
    r"""The names of a matrix that is packed while it is loaded, in every block.

    Attributes:
        stored: The pattern of the stored names, a regular expression with one group, the block.
        parameters: By role, the names of the parameters, in which ``\1`` stands for the block.
        quantise: Packs the matrix.
    """

    stored: str
    parameters: Mapping[str, str]
    quantise: Quantise


@dataclass(frozen=True, slots=True)
class PackedNames:
    """The names of packed parameters.

    Attributes:
        merged: By the name of a parameter that the unpacked model has for all experts of a module,
            for each part of it (a stored matrix of each expert) the names of the own parameters of
            the module by the stored names behind the matrix's name.
        quantised: The matrices that are stored unpacked, and are packed while they are loaded.
        renamed: Stored names of packed tensors behind a layer's name, and the names of their
            parameters, where they differ.
    """

    merged: Mapping[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    quantised: tuple[QuantisedNames, ...] = ()


def set_packed_names(model: PreTrainedModel, names: PackedNames) -> None:
    """Have stored tensors become a model's packed parameters."""
    setattr(model, _PACKED, names)


def mark_initialized(module: Any) -> None:
    """Keep `from_pretrained` from drawing random weights for a module (``modeling_utils.py``)."""
    module._is_hf_initialized = True


def packed_conversions(model: PreTrainedModel, mapping: Iterable[Any]) -> list[Any]:
    """Return transformers' conversions for a model whose layers are packed, if they are.

    A tensor of each expert is merged by itself, and no two tensors of an expert are put together.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    names: PackedNames | None = getattr(model, _PACKED, None)
    if names is None:
        return list(mapping)
    conversions: list[Any] = [_quantising(one) for one in names.quantised]
    for entry in mapping:
        parts = _packed_parts(entry, names) if isinstance(entry, WeightConverter) else None
        conversions.extend([entry] if parts is None else _merge_apart(entry, parts))
    renamings = [
        WeightRenaming(source_patterns=rf"\.{re.escape(stored)}", target_patterns=f".{own}")
        for stored, own in names.renamed.items()
    ]
    return renamings + conversions


def _quantising(names: QuantisedNames) -> Any:
    """Return the converter that packs a matrix."""
    from transformers.core_model_loading import ConversionOps, WeightConverter

    class Pack(ConversionOps):
        hf_quantizer = True  # so the stored tensors are not cast to the dtype of the packed ones

        def convert(self, input_dict: dict[str, Any], *_: Any, **kwargs: Any) -> dict[str, Any]:
            (tensors,) = input_dict.values()
            packed = names.quantise(tensors if isinstance(tensors, list) else [tensors])
            first, *_others = (name.removeprefix(r"\1") for name in names.parameters.values())
            block = kwargs["full_layer_name"].removesuffix(first)
            return {names.parameters[role].replace(r"\1", block): packed[role] for role in packed}

    return WeightConverter([names.stored], [*names.parameters.values()], operations=[Pack()])


def _packed_parts(converter: Any, names: PackedNames) -> tuple[Mapping[str, str], ...] | None:
    """Return the parts of the packed parameters that a converter would make unpacked."""
    if not merges_whole(converter):
        return None
    (target,) = converter.target_patterns
    return next((parts for name, parts in names.merged.items() if target in name), None)


def _merge_apart(converter: Any, parts: Iterable[Mapping[str, str]]) -> Iterator[Any]:
    """Yield a merge for each tensor of an expert."""
    merge = converter.operations[:1]
    (target,) = converter._original_target_patterns
    for source, own in zip(converter._original_source_patterns, parts, strict=True):
        matrix = source.removesuffix(".weight")
        for stored, name in own.items():
            yield converter.copy(
                [f"{matrix}.{stored}"],
                [f"{target.rpartition('.')[0]}.{name}"],
                operations=list(merge),
            )
