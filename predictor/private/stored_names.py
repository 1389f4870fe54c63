"""Which parameters of a model transformers makes of a checkpoint's tensors.

Read in transformers 5.23.0: ``core_model_loading.py``. `transformers` in this package declares what
is used of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from predictor.private.conversions import conversion_mapping, merges_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUMBER, _ANY = re.compile(r"(?<=\.experts\.)\d+(?=\.)"), "*"
"""The number of an expert in a name. What becomes of a stored tensor hardly depends on it, and a
checkpoint may have 100,000 of them."""


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
        self._numbered = {_NUMBER.sub(_ANY, name) for name in self._parameters}
        self._alike: dict[str, tuple[str | None, str | None]] = {}

    def parameter(self, stored: str) -> tuple[str | None, str | None]:
        """Return the parameter that a stored tensor becomes or is part of; None without any.

        Args:
            stored: The name of the tensor.

        Returns:
            The name of the parameter, and the pattern of the converter that makes it, if any does.
        """
        key = _NUMBER.sub(_ANY, stored)
        cached = self._alike.get(key)
        if cached is not None:
            return cached
        result, is_alike = self._look_up(stored)
        if is_alike:
            self._alike[key] = result
        return result

    def _look_up(self, stored: str) -> tuple[tuple[str | None, str | None], bool]:
        """Return what `parameter` does, and whether it is the same for all experts.

        It is if the experts are merged, or if no parameter has such a name with any number.
        """
        parameters = self._parameters
        target, pattern = self._rename(
            stored, self._renamings, self._converters, self._prefix, parameters
        )
        is_alike = not self._is_numbered(stored) and (
            pattern is not None or not self._is_numbered(target)
        )
        if target not in parameters and stored in parameters:
            target, pattern = self._rename(stored, [], [], self._prefix, parameters)
        result = (target, pattern) if target in parameters else (None, None)
        return result, is_alike

    def _is_numbered(self, name: str) -> bool:
        return _NUMBER.sub(_ANY, name) in self._numbered

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
            if merges_whole(converter) and (target := converter.target_patterns[0]) in parameter:
                sources = [source.replace("\\", "") for source in converter.source_patterns]
                names = [parameter.replace(target, source) for source in sources]
                return [(before, behind) for before, _, behind in (n.partition("*") for n in names)]
        return []


def stored_parameters(
    names: CheckpointNames, stored: Iterable[str], wanted: Callable[[str], bool]
) -> dict[str, StoredParameter]:
    """Return how parameters are made of a checkpoint's tensors, as far as that is a mere merge.

    A parameter that transformers computes in another way is left out.

    Args:
        names: The names of the model's parameters.
        stored: Names of all tensors of the checkpoint.
        wanted: Returns whether a parameter, given by its name, is of interest.
    """
    sources: dict[str, dict[str | None, list[str]]] = {}
    for name in stored:
        target, pattern = names.parameter(name)
        if target is not None and wanted(target):
            sources.setdefault(target, {}).setdefault(pattern, []).append(name)
    for by_source in sources.values():
        for alike in by_source.values():
            _sort(alike, names.order)
    in_order = sorted(sources.items(), key=lambda item: _first(item[1], names.order))
    return {
        target: StoredParameter(parts, is_merged)
        for target, by_source in in_order
        for parts, is_merged in _parts(by_source, names.converters)
    }


def _sort(stored: list[str], order: Callable[[str], Any]) -> None:
    """Sort stored names as transformers does; the numbers of experts suffice where all have one."""
    if len({_NUMBER.sub(_ANY, name) for name in stored}) > 1:
        stored.sort(key=order)
    elif len(stored) > 1:
        stored.sort(key=lambda name: int(_NUMBER.findall(name)[0]))


def _first(by_source: Mapping[str | None, list[str]], order: Callable[[str], Any]) -> Any:
    return min(order(alike[0]) for alike in by_source.values())


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
    if merges_whole(converter):
        yield tuple(tuple(sources[pattern]) for pattern in converter.source_patterns), True
