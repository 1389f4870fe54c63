"""A LoRA adapter as a model of its own, as the protocols see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from predictor.mixture.heat import LayerHeat
from predictor.placement.plan import Placement
from predictor.protocol.response_style import ResponseStyle
from predictor.protocol.served import Limits, ServedModel
from predictor.tasks.answers import Answer, Stream
from predictor.tasks.request import GenerationRequest, TaskRequest
from predictor.tasks.task import TaskSpec
from predictor.tasks.text_tokens import TextTokens


class AdaptedModel(ServedModel):
    """Answers as its base does, with an adapter.

    Attributes:
        name: Name under which it answers.
        key: The engine's name of the adapter.
        engine: Whether kserve's repository is to end an engine of its own.
    """

    engine = False

    def __init__(self, name: str, base: ServedModel, key: str | None = None) -> None:
        """Serve an adapter.

        Args:
            name: Its name.
            base: The model that it is loaded beside.
            key: The engine's name of it; None if that is the same.
        """
        self.name = name
        self.key = name if key is None else key
        self._base = base

    @property
    def version(self) -> str:  # type: ignore[override]
        """The only version of the base."""
        return self._base.version

    @property
    def style(self) -> ResponseStyle:  # type: ignore[override]
        """How V1 and V2 requests are read that leave something open."""
        return self._base.style

    @property
    def spec(self) -> TaskSpec:  # type: ignore[override]
        """Inputs, parameters and outputs of the task."""
        return self._base.spec

    @property
    def placement(self) -> Placement | None:  # type: ignore[override]
        """The placement of the base, which counts all adapters."""
        return self._base.placement

    async def healthy(self) -> bool:
        """Return whether a request would be answered now."""
        return await self._base.healthy()

    def progress(self) -> dict[str, object]:
        """Return the progress of loading; empty once it is done."""
        return self._base.progress()

    def expert_heat(self) -> Sequence[LayerHeat]:
        """Return nothing: the heat is that of the base."""
        return ()

    def limits(self) -> Limits:
        """Return the capacity of the base, which all adapters share."""
        return self._base.limits()

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the base, and its name."""
        metadata = self._base.metadata()
        return metadata | {"properties": metadata["properties"] | {"base": self._base.name}}

    def text_tokens(self) -> TextTokens:
        """Return what makes tokens of texts, which is that of the base."""
        return self._base.text_tokens()

    def check_open(self) -> None:
        """Return if a request may come in now; raise `NotReady` otherwise."""
        self._base.check_open()

    async def answer(self, request: TaskRequest, timeout: float | None) -> tuple[Answer, ...]:
        """Return an answer for each prompt; see `ServedModel.answer`."""
        return await self._base.answer(self._adapted(request), timeout)

    async def stream(self, request: TaskRequest, timeout: float | None) -> Stream:
        """Check a request and return the pieces of its replies; see `ServedModel.stream`."""
        return await self._base.stream(self._adapted(request), timeout)

    def stop(self) -> None:
        """Do nothing: the base goes on."""

    def _adapted(self, request: TaskRequest) -> TaskRequest:
        if isinstance(request, GenerationRequest):
            return replace(request, adapter=self.key)
        return request
