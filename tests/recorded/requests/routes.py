"""Health, models and their metadata, metrics, the schema, unknown paths and wrong methods."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Keep, Rest
from tests.recorded.servers import SERVERS

_GET = {
    "root": "/",
    "v1 models": "/v1/models",
    "v1 model": "/v1/models/demo",
    "v1 unknown model": "/v1/models/other",
    "v2": "/v2",
    "v2 slash": "/v2/",
    "v2 live": "/v2/health/live",
    "v2 ready": "/v2/health/ready",
    "v2 models": "/v2/models",
    "v2 model ready": "/v2/models/demo/ready",
    "v2 model version": "/v2/models/demo/versions/1",
    "v2 model version ready": "/v2/models/demo/versions/1/ready",
    "v2 unknown model": "/v2/models/other",
    "v2 unknown model ready": "/v2/models/other/ready",
    "v2 unknown version": "/v2/models/demo/versions/2",
    "v2 unknown version ready": "/v2/models/demo/versions/2/ready",
    "v2 long name": f"/v2/models/{'a' * 100}",
    "v2 config": "/v2/models/demo/config",
    "v1 live": "/v1/health/live",
    "trailing slash": "/v2/models/demo/",
    "slash in a name": "/v2/models/a%2Fb",
    "unknown path": "/nothing",
    "docs": "/docs",
    "redoc": "/redoc",
    "openai models": "/openai/v1/models",
    "predict": "/v1/models/demo:predict",
    "infer": "/v2/models/demo/infer",
    "index": "/v2/repository/index",
}

_OTHERS = {
    "head": ("HEAD", "/v2/health/ready"),
    "head of the root": ("HEAD", "/"),
    "options": ("OPTIONS", "/v1/models/demo:predict"),
    "delete": ("DELETE", "/v2/models/demo"),
    "put": ("PUT", "/v2/models/demo/infer"),
    "post of health": ("POST", "/v2/health/live"),
    "post of an unknown path": ("POST", "/nothing"),
    "explain": ("POST", "/v1/models/demo:explain"),
    "explain of an unknown model": ("POST", "/v1/models/other:explain"),
    "predict of an unknown model": ("POST", "/v1/models/other:predict"),
    "unknown verb": ("POST", "/v1/models/demo:embed"),
    "load": ("POST", "/v2/repository/models/demo/load"),
    "unload": ("POST", "/v2/repository/models/demo/unload"),
    "index without a body": ("POST", "/v2/repository/index"),
}

_INDEX: dict[str, Any] = {
    "all": {},
    "ready": {"ready": True},
    "not only ready": {"ready": False},
    "ready is a text": {"ready": "yes"},
    "a list": [],
}


def _get(server: str, name: str, path: str, **more: Any) -> Rest:
    return Rest(server, f"routes/{name}", path, method="GET", **more)


_UNLOADING = [
    ("load", "POST", "/v2/repository/models/handler/load"),
    ("unload of an unknown model", "POST", "/v2/repository/models/other/unload"),
    ("load of an unknown model", "POST", "/v2/repository/models/other/load"),
    ("unload", "POST", "/v2/repository/models/handler/unload"),
    ("ready when unloaded", "GET", "/v2/health/ready"),
    ("live when unloaded", "GET", "/v2/health/live"),
    ("models when unloaded", "GET", "/v2/models"),
    ("model when unloaded", "GET", "/v2/models/handler"),
    ("index when unloaded", "POST", "/v2/repository/index"),
    ("predict when unloaded", "POST", "/v1/models/handler:predict"),
    ("ping when unloaded", "GET", "/ping"),
    ("openai when unloaded", "GET", "/openai/v1/models"),
    ("load when unloaded", "POST", "/v2/repository/models/handler/load"),
]

REQUESTS = [
    *(_get("demo", name, path) for name, path in _GET.items()),
    *(
        Rest("demo", f"routes/{name}", path, method=method)
        for name, (method, path) in _OTHERS.items()
    ),
    *(
        Rest("demo", f"routes/index {name}", "/v2/repository/index", body)
        for name, body in _INDEX.items()
    ),
    *(_get(server, "v2 model", f"/v2/models/{server}") for server in SERVERS),
    _get("demo", "schema", "/openapi.json", keep=Keep.SCHEMA),
    *(
        _get(server, "metrics", "/metrics", keep=Keep.METRICS)
        for server in ("demo", "handler", "classifier")
    ),
    *(Rest("handler", f"routes/{name}", path, method=method) for name, method, path in _UNLOADING),
]
