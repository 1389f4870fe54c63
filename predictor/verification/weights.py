"""Holds the names and shapes of stored tensors against those of the model, before a weight is read.

What becomes of a tensor is decided by transformers' own conversions, which run on the meta device.
A parameter is missing if it is stored under none of its names: those of tied parameters count for
each other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from predictor.checkpoint.checkpoint import Checkpoint
from predictor.errors import CheckpointError
from predictor.private.conversions import merges_whole
from predictor.private.made_parameters import (
    MadeParameter,
    ignored_when_missing,
    make_parameters,
)
from predictor.private.stored_names import CheckpointNames
from predictor.quantization.stored import StoredSpecs
from predictor.sentences import lacks_weights

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""A number between two dots of a name, such as that of a block or of an expert."""

_POOLER = "pooler."
"""Embeddings are made of the states below a pooler. Checkpoints with another head have no pooler.
"""


def check_weights(model: PreTrainedModel, stored: StoredSpecs, checkpoint: Checkpoint) -> None:
    """Check that stored tensors are those of a model.

    Args:
        model: The model, on the meta device, with the layers packed that are stored packed.
        stored: The stored tensors.
        checkpoint: Their files.

    Raises:
        CheckpointError: A parameter is missing, or has another shape.
    """
    names = CheckpointNames(model)
    made = make_parameters(model, names, _on_meta(stored))
    expected = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    wrong = {
        name: one
        for name, one in made.items()
        if one.shape is None or one.shape != expected.get(name, one.shape)
    }
    path = str(checkpoint.path)
    missing = _missing(model, made.keys(), checkpoint.task)
    for name, one in wrong.items():
        missing += _missing_parts(names, name, one, expected)
    if missing:
        raise CheckpointError(_lacks(missing, model, path, checkpoint))
    for name, one in wrong.items():
        raise CheckpointError(_differs(name, one, expected, model, path))


def _on_meta(stored: StoredSpecs) -> dict[str, torch.Tensor]:
    """Return tensors on the meta device; those of equal shapes are one, as of experts."""
    alike = {
        spec: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
        for spec in set(stored.values())
    }
    return {name: alike[spec] for name, spec in stored.items()}


def _missing(model: PreTrainedModel, made: Collection[str], task: str) -> list[str]:
    """Return the parameters that are stored under none of their names."""
    names_of: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names_of.setdefault(id(tensor), []).append(name)
    ignored = [re.compile(pattern) for pattern in ignored_when_missing(model)]
    return sorted(
        names[0]
        for names in names_of.values()
        if not any(name in made for name in names)
        and not any(pattern.search(name) for pattern in ignored for name in names)
        and not (task == "text_embedding" and names[0].startswith(_POOLER))
    )


def _missing_parts(
    names: CheckpointNames,
    parameter: str,
    made: MadeParameter,
    expected: Mapping[str, tuple[int, ...]],
) -> Iterator[str]:
    """Yield the stored names that a parameter lacks which is made of several tensors."""
    pattern = next((pattern for pattern in made.sources if pattern is not None), None)
    if pattern is None or parameter not in expected:
        return
    converter = names.converters[pattern]
    for each in converter.source_patterns:
        alike = made.sources.get(each, ())
        if not alike:
            yield f"{each} of {parameter}"
        elif "*" in each and merges_whole(converter):
            begin, end = _around_number(alike[0])
            numbers = [f"{begin}{number}{end}" for number in range(expected[parameter][0])]
            yield from (name for name in numbers if name not in alike)


def _around_number(name: str) -> tuple[str, str]:
    """Return what stands before and behind the last number of a name, that of an expert."""
    *_, last = _NUMBER.finditer(name)
    return name[: last.start()], name[last.end() :]


def _lacks(
    missing: Sequence[str], model: PreTrainedModel, path: str, checkpoint: Checkpoint
) -> str:
    sentence = lacks_weights(path, type(model).__name__, missing)
    stored = checkpoint.stored
    if stored is not None and stored.unused is not None:
        used = stored.files[0].name + (" and others" if len(stored.files) > 1 else "")
        sentence += f"; the weights are those in {used}, and {stored.unused} was not used"
    return f"{sentence}."


def _differs(
    name: str,
    made: MadeParameter,
    expected: Mapping[str, tuple[int, ...]],
    model: PreTrainedModel,
    path: str,
) -> str:
    architecture, first = type(model).__name__, made.first_source
    if made.shape is None:
        return (
            f"{path} does not match its config: {name} of {architecture} cannot be made of "
            f"{first}: {made.reason}"
        )
    joined = sum(map(len, made.sources.values())) > 1
    stored = f"{first} and the tensors beside it make" if joined else f"{first} has"
    return (
        f"{path} does not match its config: {stored} the shape {list(made.shape)}, where "
        f"{architecture} needs {list(expected[name])}" + (f" ({name})." if name != first else ".")
    )
