"""The OpenAPI document at ``/openapi.json``, made of the routes that are served.

Bodies are described as JSON objects: what may be in them is in the documentation, and checked in
words that no schema has.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import predictor
from predictor.protocol.http.error_forms import api_of
from predictor.protocol.served import SERVER_NAME

_JSON = {"application/json": {"schema": {"type": "object"}}}
_HIDDEN = ("/openapi.json", "/docs", "/redoc", "/v2/repository/models", "/ui/")


def describe(routes: Sequence[BaseRoute]) -> dict[str, object]:
    """Return the document of routes.

    Args:
        routes: The routes of the application, of which the first that matches answers. The SDK's
            are of another class.
    """
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        if type(route) is Route and not route.path.startswith(_HIDDEN):
            operations = paths.setdefault(_path(route), {})
            for method, operation in _operations(route):
                operations.setdefault(method, operation)
    info = {"title": SERVER_NAME, "version": predictor.__version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


async def docs_page(_request: Request) -> Response:
    """``GET /docs``: a page that shows the document."""
    return get_swagger_ui_html(openapi_url="/openapi.json", title=SERVER_NAME)


def _operations(route: Route) -> Iterator[tuple[str, dict[str, object]]]:
    summary = " ".join((inspect.getdoc(route.endpoint) or "").partition("\n\n")[0].split())
    for method in sorted((route.methods or set()) - {"HEAD"}):
        operation: dict[str, object] = {
            "summary": summary.partition(": ")[2] or summary,
            "operationId": f"{method.lower()}{route.path}",
            "tags": [api_of(route.path)],
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in route.param_convertors
            ],
            "responses": {
                "200": {"description": "The answer.", "content": _JSON},
                "default": {"description": "An error, in one sentence.", "content": _JSON},
            },
        }
        if method in ("POST", "PUT"):
            operation["requestBody"] = {"required": True, "content": _JSON}
        yield method.lower(), operation


def _path(route: Route) -> str:
    """Return a path without the kinds of its parameters, which OpenAPI has elsewhere."""
    return route.path.replace(":path}", "}")
