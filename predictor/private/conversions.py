"""How transformers makes a model's parameters of a checkpoint's tensors: by names and conversions.

Read in transformers 5.23.0: ``core_model_loading.py``, ``conversion_mapping.py`` and
``quantizers/base.py``. `transformers` in this package declares what is used of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    return any(not (_merges(one) and _is_for(one, but)) for one in converters)


def _is_for(converter: Any, names: Collection[str]) -> bool:
    (target,) = converter.target_patterns
    return any(target.replace("\\", "") in name for name in names)


def _merges(converter: Any) -> bool:
    """Return whether a converter makes one parameter of whole stored tensors."""
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
    return len(converter.target_patterns) == 1 and steps in ([_MERGE], [_MERGE, _CONCATENATE])


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """How `from_pretrained` makes a parameter of stored tensors (``core_model_loading.py``).

    Attributes:
        parts: Names of stored tensors. Without a merge, one part with one tensor. With a merge, for
            each part a tensor for each expert, and the parts of an expert lie one behind the other.
        is_merged: Whether the tensors of the experts are merged along a new first dimension.
    """

    parts: tuple[tuple[str, ...], ...]
    is_merged: bool


class CheckpointNames:
    """The parameters of a model that `from_pretrained` makes of a checkpoint's tensors, by name.

    Attributes:
        converters: transformers' converters by the patterns of the names that they take.
        order: The key by which transformers sorts stored names.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Look the model's conversions up.

        Args:
            model: The model, which may be on the meta device.
        """
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        mapping = conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self.converters: dict[str, Any] = {
            pattern: one for one in self._converters for pattern in one.source_patterns
        }
        self.order: Callable[[str], Any] = dot_natural_key
        self._rename: Any = rename_source_key
        self._prefix, self._parameters = model.base_model_prefix, model.state_dict()

    def parameter(self, stored: str) -> tuple[str | None, str | None]:
        """Return the parameter that a stored tensor becomes or is part of; None without any.

        Args:
            stored: The name of the tensor.

        Returns:
            The name of the parameter, and the pattern of the converter that makes it, if any does.
        """
        parameters = self._parameters
        target, pattern = self._rename(
            stored, self._renamings, self._converters, self._prefix, parameters
        )
        if target not in parameters and stored in parameters:
            target, pattern = self._rename(stored, [], [], self._prefix, parameters)
        return (target, pattern) if target in parameters else (None, None)

    def is_converted(self, parameter: str) -> bool:
        """Return whether transformers computes a parameter from stored tensors."""
        targets = (target for one in self._converters for target in one.target_patterns)
        return any(target.replace("\\", "") in parameter for target in targets)

    def merged_from(self, parameter: str) -> list[tuple[str, str]]:
        """Return the stored names of which a parameter of all experts is usually merged.

        Args:
            parameter: The name of a parameter of the model.

        Returns:
            For each part what stands before and behind an expert's number; empty if no tensors are
            merged.
        """
        for converter in self._converters:
            if _merges(converter) and (target := converter.target_patterns[0]) in parameter:
                sources = [source.replace("\\", "") for source in converter.source_patterns]
                names = [parameter.replace(target, source) for source in sources]
                return [(before, behind) for before, _, behind in (n.partition("*") for n in names)]
        return []


def conversion_mapping(model: PreTrainedModel) -> list[Any]:
    """Return transformers' renamings and converters of stored tensors for this model."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return packed_conversions(model, get_model_conversion_mapping(model) or [])


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
    if not _merges(converter):
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


def stored_parameters(
    model: PreTrainedModel, stored: Iterable[str], wanted: Callable[[str], bool]
) -> dict[str, StoredParameter]:
    """Return how parameters are made of a checkpoint's tensors, as far as that is a mere merge.

    A parameter that transformers computes in another way is left out.

    Args:
        model: The model, which may be on the meta device.
        stored: Names of all tensors of the checkpoint.
        wanted: Returns whether a parameter, given by its name, is of interest.
    """
    names = CheckpointNames(model)
    sources: dict[str, dict[str | None, list[str]]] = {}
    for name in sorted(stored, key=names.order):
        target, pattern = names.parameter(name)
        if target is not None and wanted(target):
            sources.setdefault(target, {}).setdefault(pattern, []).append(name)
    return {
        target: StoredParameter(parts, is_merged)
        for target, by_source in sources.items()
        for parts, is_merged in _parts(by_source, names.converters)
    }


def _parts(
    sources: Mapping[str | None, list[str]], converters: Mapping[str, Any]
) -> Iterator[tuple[tuple[tuple[str, ...], ...], bool]]:
    """Yield the parts of a parameter and whether they are merged; nothing if it is computed."""
    patterns = list(sources)
    if patterns == [None]:
        if len(sources[None]) == 1:
            yield (tuple(sources[None]),), False
        return
    converter = converters.get(str(patterns[0]))
    if converter is None or set(patterns) != set(converter.source_patterns):
        return
    if _merges(converter):
        yield tuple(tuple(sources[pattern]) for pattern in converter.source_patterns), True
