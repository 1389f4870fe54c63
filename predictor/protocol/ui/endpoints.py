"""HTTP endpoints of the page in the browser.

The page and its files are the same for everybody and need no API key, like the progress of
loading. The placement and the figures need one where requests do. Nothing is loaded from elsewhere,
and the browser is told to allow nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import predictor
from predictor.errors import NotReady, UnknownModel
from predictor.placement.picture import Drawing, draw
from predictor.placement.picture_shapes import STYLE
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.http.json_body import JSONAnswer
from predictor.protocol.served import Models, ServedModel, readiness
from predictor.protocol.ui.live import live_figures

_FILES = Path(__file__).parent / "files"
_PAGE = "page.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The headers of the page and of everything that it loads."""


def accepts_html(accept: str) -> bool:
    """Return whether an ``Accept`` header names HTML itself, as browsers do.

    ``*/*`` is what curl and HTTP libraries send; they get what KServe answers.
    """
    for part in accept.lower().split(","):
        media_type, *parameters = (word.strip() for word in part.split(";"))
        if media_type == "text/html":
            return not any(_is_zero(parameter) for parameter in parameters)
    return False


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().strip("0") in ("", ".")


@dataclass(frozen=True, slots=True)
class PageEndpoints:
    """The endpoints and the models that they show.

    Attributes:
        models: The models that are served.
        keys: The API keys, one of which the page has to send.
        files: The files of the page by name.
    """

    models: Models
    keys: ApiKeys
    files: Mapping[str, bytes] = field(default_factory=lambda: _read_files())

    async def root(self, request: Request) -> Response:
        """``GET /``: the page for a browser; for others, the process answers."""
        if accepts_html(request.headers.get("accept", "")):
            return self._answer(_PAGE, {"Vary": "Accept"})
        return JSONAnswer({"status": "alive"}, headers={"Vary": "Accept"})

    async def file(self, request: Request) -> Response:
        """``GET /ui/{file}``: a file of the page."""
        name = request.path_params["file"]
        if name not in self.files or name == _PAGE:
            raise UnknownModel(f"There is no file {name[:64]!r} of the page.")
        return self._answer(name, {})

    async def progress(self, _request: Request) -> JSONAnswer:
        """``GET /ui/progress``: whether the model is ready, and the progress of its loading."""
        is_ready, progress = await readiness(self.models)
        about: dict[str, object] = {
            "ready": is_ready,
            "progress": progress,
            "needs_key": self.keys.are_needed,
        }
        return JSONAnswer(about, headers=dict(HEADERS))

    async def state(self, _request: Request) -> JSONAnswer:
        """``GET /ui/state``: the model, and its live figures."""
        model = self._model()
        spec = model.spec
        about: dict[str, Any] = {
            "model": model.name,
            "names": list(self.models.get_models()),
            "task": spec.task,
            "server": predictor.__version__,
            "fields": [
                {"name": one.name, "required": one.required, "example": one.example}
                for one in spec.fields
            ],
            "is_placed": model.placement is not None,
            "figures": live_figures(model.name, clock=time.monotonic),
        }
        return JSONAnswer(about, headers=dict(HEADERS))

    async def placement(self, _request: Request) -> Response:
        """``GET /ui/placement.svg``: the placement as a picture."""
        placement = self._model().placement
        if placement is None:
            raise NotReady("The model is not placed yet.")
        picture = draw([Drawing(placement)], styled=False)
        return Response(picture, headers=dict(HEADERS), media_type=_TYPES[".svg"])

    def _model(self) -> ServedModel:
        """Return the first model; others are aliases and adapters of it."""
        model = next(iter(self.models.get_models().values()), None)
        if model is None:
            raise UnknownModel("There is no model.")
        return model

    def _answer(self, name: str, headers: Mapping[str, str]) -> Response:
        media_type = _TYPES[Path(name).suffix]
        return Response(self.files[name], headers={**HEADERS, **headers}, media_type=media_type)


def _read_files() -> dict[str, bytes]:
    files = {file.name: file.read_bytes() for file in _FILES.iterdir() if file.suffix in _TYPES}
    return {**files, "placement.css": STYLE.encode()}
