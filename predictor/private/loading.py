"""What `from_pretrained` does on the way that is decided here instead: files, ties, and places.

Read in transformers 5.23.0: ``modeling_utils.py`` and ``utils/hub.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def files_replaced(tensors: Mapping[Path, Sequence[str]]) -> Iterator[None]:
    """Have `from_pretrained` load these files, whatever else lies in the directory.

    Args:
        tensors: The names of the tensors in each file; none of files that have no header.
    """
    from transformers import modeling_utils

    library: Any = modeling_utils
    original = library._get_resolved_checkpoint_files
    weight_map = {name: file.name for file, names in tensors.items() for name in names}
    metadata = {"weight_map": weight_map, "all_checkpoint_keys": list(weight_map)}
    files = [str(file) for file in tensors]

    def resolve(*_: Any, **__: Any) -> tuple[list[str], dict[str, Any] | None]:
        return list(files), metadata if len(files) > 1 else None

    library._get_resolved_checkpoint_files = resolve
    try:
        yield
    finally:
        library._get_resolved_checkpoint_files = original


@contextlib.contextmanager
def open_replaced(opened: Callable[..., Any]) -> Iterator[None]:
    """Have `from_pretrained` read tensors from what this returns instead of safetensors' file."""
    from transformers import modeling_utils

    library: Any = modeling_utils
    original = library.safe_open
    library.safe_open = opened
    try:
        yield
    finally:
        library.safe_open = original


@contextlib.contextmanager
def kept_apart(names: Collection[str]) -> Iterator[None]:
    """Have transformers not tie these parameters, which a config ties to others."""
    from transformers import PreTrainedModel

    library: Any = PreTrainedModel
    original = library.tie_weights

    def tie_weights(model: Any, *arguments: Any, **options: Any) -> None:
        for name in names:
            model.all_tied_weights_keys.pop(name, None)
        original(model, *arguments, **options)

    library.tie_weights = tie_weights if names else original
    try:
        yield
    finally:
        library.tie_weights = original


def complete_ties(
    model: PreTrainedModel, index: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the other names of tied parameters to an index by name, whichever of them is in it.

    transformers adds the tied name where the name is there that it is tied to, and no other.
    """
    groups: dict[str, list[str]] = {}
    for target, source in (model.all_tied_weights_keys or {}).items():
        groups.setdefault(source, [source]).append(target)
    for names in groups.values():
        entry = next((index[name] for name in names if name in index), None)
        if entry is not None:
            for name in names:
                index.setdefault(name, entry)
    return index
