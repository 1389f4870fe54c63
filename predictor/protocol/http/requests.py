"""The parts of an HTTP request that every API reads: the model in its path, and its body."""

from __future__ import annotations

from starlette.requests import Request

from predictor.protocol.http.json_body import parse_document, present
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.served import Models, ServedModel, find


def resolve_model(models: Models, request: Request) -> ServedModel:
    """Return the model that a path names.

    Raises:
        UnknownModel: There is none, or not in the path's version.
    """
    return find(models, request.path_params["model"], request.path_params.get("version"))


async def read_body(request: Request) -> bytes:
    """Return the whole body."""
    return await request.body()


async def read_document(request: Request) -> tuple[dict[str, object], int]:
    """Return a body as JSON without its nulls, and its size in bytes.

    A large one is parsed off the event loop.

    Raises:
        RequestError: The body is no JSON object.
    """
    body = await read_body(request)
    return await off_loop(len(body), lambda: present(parse_document(body))), len(body)
