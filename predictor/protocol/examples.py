"""Example requests for a server's log, which work when they are pasted into a shell."""

from __future__ import annotations

import json

from predictor.protocol.served import ServedModel
from predictor.tasks.generation_spec import GenerationSpec


def example_requests(model: ServedModel, url: str, *, torchserve: bool) -> str:
    """Return curl commands that work with a server.

    Args:
        model: Its model.
        url: Its URL.
        torchserve: Whether it serves TorchServe's routes.
    """
    spec, name = model.spec, model.name
    is_generation = isinstance(spec, GenerationSpec)
    more = {"parameters": {"max_new_tokens": 25}} if is_generation else {}
    fields = {field.name: field.example for field in spec.fields if field.required}
    first = next(iter(fields.values()))
    instance: object = fields if len(fields) > 1 else first
    v1 = {"instances": [instance], **more}
    tensors = [
        {"name": field, "shape": [1], "datatype": "BYTES", "data": [text]}
        for field, text in fields.items()
    ]
    lines = [
        f"curl {url}/v1/models/{name}:predict -d '{json.dumps(v1)}'",
        f"curl {url}/v2/models/{name}/infer -d '{json.dumps({'inputs': tensors, **more})}'",
        f"curl {url}/v2/models/{name}",
    ]
    if torchserve and is_generation:
        lines.append(f"curl {url}/predictions/{name} --data-urlencode 'data={first}'")
    return "\n".join(lines)
