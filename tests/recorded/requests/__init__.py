"""The requests, one module for each protocol, in the order in which a server gets them."""

from __future__ import annotations

from tests.recorded.forms import Request
from tests.recorded.requests import (
    generate,
    grpc_calls,
    lists,
    malformed,
    openai,
    routes,
    strained,
    torchserve,
    v1,
    v2,
    v2_forms,
)

_MODULES = (
    *(v1, v2, v2_forms, grpc_calls, generate, openai, lists, torchserve, malformed),
    *(routes, strained),  # last: metrics count all before, and strained ends the server
)

REQUESTS: tuple[Request, ...] = tuple(request for module in _MODULES for request in module.REQUESTS)
