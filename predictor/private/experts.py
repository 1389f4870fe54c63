"""transformers' experts interface, and how it makes a mixture's parameters of stored tensors.

Read in transformers 5.23.0: ``integrations/moe.py``, ``core_model_loading.py`` and
``conversion_mapping.py``. `transformers` in this package declares what is used of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MERGE, _CONCATENATE = ("MergeModulelist", 0), ("Concatenate", 1)
"""Steps of a conversion, and their dimension, that move whole tensors and change none."""


def uses_experts_interface(module: Any) -> bool:
    """Return whether a module is experts that any registered function may compute.

    The class then has the decorator ``use_experts_implementation`` (``integrations/moe.py``), whose
    `forward` asks an interface of functions. A subclass with a `forward` of its own asks none.
    """
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "experts_interface" in code.co_freevars


def register_experts_function(name: str, function: Callable[..., Any]) -> None:
    """Register a function that computes the experts of a mixture (``integrations/moe.py``).

    Args:
        name: The name by which a config selects it, as ``experts_implementation``.
        function: Called with the experts module, the hidden states of shape (tokens, hidden), and
            the indices and the weights of the chosen experts, both of shape (tokens, chosen).
    """
    from transformers.integrations import moe

    interface: Any = moe.ALL_EXPERTS_FUNCTIONS
    interface.register(name, function)


def select_experts_function(module: Any, name: str) -> None:
    """Have a registered function compute an experts module, and all that share its config."""
    module.config._experts_implementation = name


def selected_experts_function(module: Any) -> str | None:
    """Return the name of the function that computes an experts module; None for its own code."""
    name: str | None = module.config._experts_implementation
    return name


def converts_weights(model: PreTrainedModel, but: Collection[str] = ()) -> bool:
    """Return whether transformers changes stored tensors while it loads this model.

    It does for most mixtures of experts, whose experts it merges.

    Args:
        model: The model.
        but: Names of parameters whose merge does not count.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    mapping: list[Any] = get_model_conversion_mapping(model) or []
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
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping: list[Any] = get_model_conversion_mapping(model) or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters: list[Any] = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    parameters, prefix = model.state_dict(), model.base_model_prefix
    sources: dict[str, dict[str | None, list[str]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:
            target, pattern = rename_source_key(name, [], [], prefix, parameters)
        if target in parameters and wanted(target):
            sources.setdefault(target, {}).setdefault(pattern, []).append(name)
    return {
        target: StoredParameter(parts, is_merged)
        for target, by_source in sources.items()
        for parts, is_merged in _parts(by_source, by_pattern)
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
