"""The parts of an HTTP request that every API reads: the model in its path, and its body."""

from __future__ import annotations

from starlette.requests import Request

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
