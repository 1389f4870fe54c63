"""HTTP endpoints that load and unload LoRA adapters, in vLLM's forms.

The source is ``vllm/entrypoints/serve/lora/protocol.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from predictor.errors import RequestError
from predictor.protocol.http.json_body import check_nesting, require_type
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_document
from predictor.protocol.openai.keys import IgnoredKeys, split_keys

_LOAD = ("lora_name", "lora_path")
_UNLOAD = ("lora_name",)
_IGNORED = ("lora_int_id", "base_model_name", "load_inplace", "is_3d_lora_weight")


class Adapters(Protocol):
    """Loads adapters beside the model."""

    async def load(self, name: str, source: str) -> None:
        """Load an adapter, and serve it under a name."""
        ...

    def unload(self, name: str) -> None:
        """Serve an adapter no more."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterEndpoints:
    """The endpoints and what loads adapters.

    Attributes:
        adapters: Loads them.
        ignored: Logs the keys that are not followed.
    """

    adapters: Adapters
    ignored: IgnoredKeys = field(default_factory=IgnoredKeys)

    async def load(self, request: Request) -> PlainTextResponse:
        """``POST /v1/load_lora_adapter``: loads an adapter."""
        given = await self._given(request, _LOAD)
        name, source = _text(given, "lora_name"), _text(given, "lora_path")
        await self.adapters.load(name, source)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> PlainTextResponse:
        """``POST /v1/unload_lora_adapter``: unloads an adapter."""
        given = await self._given(request, _UNLOAD)
        name = _text(given, "lora_name")
        self.adapters.unload(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _given(self, request: Request, followed: tuple[str, ...]) -> Mapping[str, object]:
        document, size = await read_document(request)
        await off_loop(size, lambda: check_nesting(document))
        given, ignored = split_keys(document, followed, refused={}, ignored=_IGNORED)
        self.ignored.log(ignored)
        return given


def _text(given: Mapping[str, object], name: str) -> str:
    text = require_type(given.get(name), str, name)
    if not text:
        raise RequestError(f"{name} is empty.")
    return text
