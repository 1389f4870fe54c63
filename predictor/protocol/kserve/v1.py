"""The V1 protocol: ``{"instances": [...]}`` in, ``{"predictions": [...]}`` out.

V1 has no machine-readable specification; the source is the SDK's ``v1_endpoints.py`` and KServe's
data plane documentation. An instance is a string, the task's first field, or an object with the
fields by their names or aliases. It may have ``parameters`` of its own, which override the
request's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    check_count,
    check_keys,
    dump_json,
    kind,
    optional,
    parse_document,
    present,
    require_type,
)
from predictor.protocol.kserve.kserve_answers import kserve_prediction
from predictor.protocol.kserve.v1_answers import prediction, text_or_prediction
from predictor.protocol.response_style import Predictions
from predictor.tasks.answers import Answer
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import TaskRequest, most_instances
from predictor.tasks.task import RawInstance, TaskSpec

_RENDERERS: Mapping[Predictions, Callable[[Answer], object]] = {
    "objects": prediction,
    "texts": text_or_prediction,
    "kserve": kserve_prediction,
}
_KEYS = ("instances", "inputs", "parameters")


def decode(document: Mapping[str, object], spec: TaskSpec) -> TaskRequest:
    """Return the request of a V1 body.

    Args:
        document: The body.
        spec: The model's task.

    Raises:
        RequestError: The body has another form or no instance, or a field or parameter is wrong.
    """
    given = present(document)
    check_keys(given, _KEYS, "the body")
    name, instances = _instances(given)
    if not instances:
        noun = " prompt" if isinstance(spec, GenerationSpec) else ""
        raise RequestError(f"{name} is empty; give at least one{noun}.")
    check_count(len(instances), most_instances(spec.task))
    return spec.request(
        optional(given, "parameters", dict, "parameters") or {},
        (
            decode_instance(instance, f"{name}[{number}]", spec)
            for number, instance in enumerate(instances)
        ),
    )


def _instances(given: Mapping[str, object]) -> tuple[str, list[object]]:
    """Return the instances and the key that has them, of the two that KServe takes."""
    if "instances" in given and "inputs" in given:
        raise RequestError("The body has both 'instances' and 'inputs'.")
    name = "inputs" if "inputs" in given else "instances"
    if name not in given:
        raise RequestError("The body has no 'instances'.")
    return name, require_type(given[name], list, name)


def decode_body(body: bytes, spec: TaskSpec) -> TaskRequest:
    """Return the request of a V1 body; raises the errors of `decode`."""
    return decode(parse_document(body), spec)


def decode_instance(instance: object, place: str, spec: TaskSpec) -> RawInstance:
    """Return an instance, whose parameters the task has still to check.

    Args:
        instance: A string, or an object with fields.
        place: The instance's name in error sentences.
        spec: The model's task.

    Raises:
        RequestError: It is neither, or a field is missing, unknown or no string.
    """
    if isinstance(instance, str):
        fields, own = {spec.fields[0].name: instance}, {}
    elif isinstance(instance, dict):
        names = {key: field.name for field in spec.fields for key in (field.name, *field.aliases)}
        check_keys(instance, (*names, "parameters"), place)
        instance = present(instance)
        own = optional(instance, "parameters", dict, f"{place}.parameters") or {}
        if isinstance(spec, GenerationSpec):
            _check_one_prompt(instance, names, place)
        fields = _fields(instance, names, place)
    else:
        raise RequestError(f"{place} must be a string or an object, not {kind(instance)}.")
    for field in spec.fields:
        if field.required and field.name not in fields:
            raise RequestError(f"{place} has no {field.name!r}.")
    return RawInstance(fields, own, place)


def encode(answers: Sequence[Answer], *, predictions: Predictions = "objects") -> dict[str, object]:
    """Return the V1 response.

    Args:
        answers: The answers, in the order of the instances.
        predictions: Their form: objects, the text alone for a completion, as in TorchServe's V1
            envelope, or that of KServe's Hugging Face server.
    """
    render = _RENDERERS[predictions]
    return {"predictions": [render(answer) for answer in answers]}


def encode_body(answers: Sequence[Answer], *, predictions: Predictions) -> bytes:
    """Return the body of the V1 response; see `encode`."""
    return dump_json(encode(answers, predictions=predictions))


def _check_one_prompt(instance: Mapping[str, object], keys: Iterable[str], place: str) -> None:
    given = [key for key in keys if key in instance]
    if len(given) != 1:
        count = "none" if not given else " and ".join(given)
        raise RequestError(f"{place} needs one of {', '.join(keys)}; it has {count}.")


def _fields(instance: Mapping[str, object], names: Mapping[str, str], place: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for key, value in instance.items():
        if key not in names:
            continue
        if names[key] in fields:
            raise RequestError(f"{place} has its {names[key]} twice.")
        fields[names[key]] = require_type(value, str, f"{place}.{key}")
    return fields
