"""The input tensors of a V2 request: which is which field of the task, and their texts.

Generation: the prompts are the one BYTES tensor that is not named as a parameter. The metadata
calls it ``text``, but clients of KServe's own Hugging Face server call it ``input-0``, so any name
will do. Every generation parameter may be an input too. Encoder tasks: each field is a BYTES tensor
of n elements, or of one that holds for all n. If one field is required, a lone tensor may have any
name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predictor.errors import RequestError, nearest
from predictor.protocol.http.json_body import check_count
from predictor.protocol.kserve.tensors import elements, size_of
from predictor.sentences import quote
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import most_instances
from predictor.tasks.task import TaskSpec


@dataclass(frozen=True, slots=True)
class Inputs:
    """The decoded input tensors of a request.

    Attributes:
        count: Instances in the request, at least one.
        texts: The texts of each field, by name: one for each instance, or one for all.
        shape: Shape of the tensor of the task's first field.
        parameters: The `InferInput`s that are parameters.
    """

    count: int
    texts: Mapping[str, Sequence[str]]
    shape: tuple[int, ...]
    parameters: Sequence[Any]

    def row(self, number: int) -> dict[str, str]:
        """Return the texts of an instance by field."""
        return {
            name: column[number if len(column) > 1 else 0] for name, column in self.texts.items()
        }


def decode_inputs(tensors: Sequence[Any], spec: TaskSpec) -> Inputs:
    """Return the texts and the parameter tensors of a request's `InferInput`s.

    Raises:
        RequestError: The tensors do not fit the task's fields, or one is malformed.
    """
    noun = "prompt" if isinstance(spec, GenerationSpec) else "text"
    if not tensors:
        raise RequestError(f"inputs is empty; give a BYTES tensor with at least one {noun}.")
    check_once([tensor.name for tensor in tensors], "Input")
    if isinstance(spec, GenerationSpec):
        prompts, parameters = _split_prompts(tensors, spec)
        fields = {spec.fields[0].name: prompts}
    else:
        fields, parameters = _by_field(tensors, spec), []
    count = _count(fields, most_instances(spec.task))
    if not count:
        raise RequestError(_no_element(fields, spec))
    return Inputs(
        count=count,
        texts={name: [str(text) for text in elements(each)] for name, each in fields.items()},
        shape=tuple(fields[spec.fields[0].name].shape),
        parameters=parameters,
    )


def check_once(names: Sequence[str], what: str) -> None:
    """Check that no name is there twice.

    Raises:
        RequestError: One is.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RequestError(f"{what} {quote(name)} is there twice.")
        seen.add(name)


def _count(fields: Mapping[str, Any], most: int) -> int:
    """Return the number of instances, of the sizes that the tensors' shapes have."""
    sizes = {
        name: size_of(tensor.shape, f"Input {quote(tensor.name)}")
        for name, tensor in fields.items()
    }
    count = max(sizes.values())
    check_count(count, most)
    for name, size in sizes.items():
        if size not in (1, count):
            counts = "1" if count == 1 else f"1 or {count}"
            raise RequestError(f"Input {quote(name)} has {size} elements instead of {counts}.")
    return count


def _no_element(fields: Mapping[str, Any], spec: TaskSpec) -> str:
    if isinstance(spec, GenerationSpec):
        (prompts,) = fields.values()
        return f"Input {quote(prompts.name)} has no element; give at least one prompt."
    return "The inputs have no element; give at least one text."


def _split_prompts(tensors: Sequence[Any], spec: GenerationSpec) -> tuple[Any, list[Any]]:
    """Return the tensor of prompts and the parameter tensors."""
    names = spec.parameter_names
    for tensor in tensors:
        _check_own_parameters(tensor, names)
    others = [tensor for tensor in tensors if tensor.name not in names]
    strange = [tensor for tensor in others if tensor.datatype != "BYTES"]
    if strange:
        name = strange[0].name
        hint = nearest(name, names)
        raise RequestError(f"Input {quote(name)} is neither BYTES nor a parameter; {hint}")
    if len(others) != 1:
        count = "none" if not others else " and ".join(quote(other.name) for other in others[:2])
        raise RequestError(f"inputs must have one BYTES tensor of prompts; here there is {count}.")
    return others[0], [tensor for tensor in tensors if tensor.name in names]


def _check_own_parameters(tensor: Any, names: Sequence[str]) -> None:
    for name in tensor.parameters or {}:
        if name in names:
            place = f"input {quote(tensor.name)}"
            raise RequestError(f"{name} is a parameter of the request, not of {place}.")


def _by_field(tensors: Sequence[Any], spec: TaskSpec) -> dict[str, Any]:
    """Return the tensor of each field of an encoder task."""
    names = [field.name for field in spec.fields]
    required = [field.name for field in spec.fields if field.required]
    fields = {tensor.name: tensor for tensor in tensors if tensor.name in names}
    strange = [tensor for tensor in tensors if tensor.name not in names]
    if len(required) == 1 and len(strange) == 1 and required[0] not in fields:
        fields[required[0]] = strange.pop()
    if strange:
        raise RequestError(
            f"There is no input {quote(strange[0].name)}; known are {', '.join(names)}."
        )
    for name in required:
        if name not in fields:
            raise RequestError(f"inputs has no {name!r}.")
    for tensor in fields.values():
        if tensor.datatype != "BYTES":
            raise RequestError(
                f"Input {quote(tensor.name)} must be BYTES, not {quote(tensor.datatype)}."
            )
    return fields
