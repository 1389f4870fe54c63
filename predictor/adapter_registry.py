"""The adapters that are loaded and unloaded while the server runs, as its clients name them.

The engine knows each by a key of its own, so that an adapter that was unloaded and another of the
same name never share anything, cached prefixes among them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re

from predictor.adapted_model import AdaptedModel
from predictor.engine.generation.prompt_tokens import PromptTokens
from predictor.engine.generation.sampling_params import (
    CachedPrompt,
    FinishReason,
    Queued,
    SamplingParams,
    Token,
)
from predictor.engine.process.client import GenerationClient
from predictor.errors import (
    CheckpointError,
    HubUnreachable,
    LoadFailed,
    PredictorError,
    RequestError,
    UnknownModel,
)
from predictor.model import PredictorModel
from predictor.sentences import quote
from predictor.settings import Settings

from kserve import ModelRepository  # isort: skip

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[^/:\s]{1,128}")


def register_adapters(
    settings: Settings, base: PredictorModel, models: ModelRepository
) -> AdapterRegistry | None:
    """Serve the adapters of the settings, and return what loads more; None if nothing may.

    Args:
        settings: The settings.
        base: The model beside which they are loaded.
        models: Holds the model.
    """
    for name in settings.lora_modules:
        models.update(AdaptedModel(name, base))
    return AdapterRegistry(base, models) if settings.lora_memory else None


class AdapterRegistry:
    """Loads adapters beside the one model of a repository."""

    def __init__(self, base: PredictorModel, models: ModelRepository) -> None:
        """Begin without any.

        Args:
            base: The model.
            models: Holds the model, its aliases and the adapters of the start.
        """
        self._base = base
        self._models = models
        self._numbers = itertools.count(1)
        self._loading: set[str] = set()
        self._loaded: dict[str, AdaptedModel] = {}

    async def load(self, name: str, source: str) -> None:
        """Load an adapter, and serve it under a name.

        Args:
            name: The name for requests.
            source: A directory or a repository on the hub.

        Raises:
            NotReady: The model is not loaded.
            RequestError: The name is taken or has a slash, a colon or a space, or the adapter
                cannot be served.
        """
        client = self._client()
        if _NAME.fullmatch(name) is None or not name.isprintable():
            raise RequestError(
                "lora_name has 1 to 128 printable characters without slash, colon and space."
            )
        if name in self._loading or self._models.get_model(name) is not None:
            raise RequestError(f"There is a model {quote(name)} already; unload it first.")
        gone = self._loaded.pop(name, None)
        if gone is not None:  # KServe's route has unloaded it
            client.unload_adapter(gone.key)
        key = f"{name}/{next(self._numbers)}"  # as no adapter of the settings is named
        self._loading.add(name)
        try:
            await self._load(client, key, source)
        finally:
            self._loading.discard(name)
        self._loaded[name] = model = AdaptedModel(name, self._base, key)
        self._models.update(model)
        logger.info("The adapter %r is loaded from %s", name, source)

    def unload(self, name: str) -> None:
        """Serve an adapter no more. Requests that run go on with it.

        Raises:
            NotReady: The model is not loaded.
            RequestError: The adapter is one of the start.
            UnknownModel: There is no such adapter.
        """
        client = self._client()
        model = self._loaded.pop(name, None)
        if model is not None:
            client.unload_adapter(model.key)
            if self._models.get_model(name) is model:
                self._models.unload(name)
            logger.info("The adapter %r is unloaded", name)
        elif isinstance(self._models.get_model(name), AdaptedModel):
            raise RequestError(f"{quote(name)} is an adapter of lora_modules, which stay.")
        else:
            raise UnknownModel(f"There is no adapter {quote(name)}.")

    def _client(self) -> GenerationClient:
        self._base.check_open()
        client = self._base.client
        if not isinstance(client, GenerationClient):
            raise RequestError(f"Adapters are for text_generation; see {self._base.spec.task}.")
        return client

    async def _load(self, client: GenerationClient, key: str, source: str) -> None:
        """Load an adapter, and compute a token with it."""
        try:
            await asyncio.wrap_future(client.load_adapter(key, source))
        except (CheckpointError, HubUnreachable, LoadFailed) as error:
            raise RequestError(str(error).replace(key, key.rpartition("/")[0])) from None
        trial = _Trial(asyncio.get_running_loop().create_future())
        client.submit([0], SamplingParams(max_new_tokens=1, adapter=key), trial)
        outcome = await trial.outcome
        if isinstance(outcome, PredictorError):
            client.unload_adapter(key)
            raise RequestError("The model cannot compute with the adapter; the log has the reason.")


class _Trial:
    """The callback of a token that nobody needs."""

    def __init__(self, outcome: asyncio.Future[FinishReason | PredictorError]) -> None:
        self.outcome = outcome
        self._loop = asyncio.get_running_loop()

    def on_queued(self, queued: Queued) -> None:
        """Do nothing."""

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        """Do nothing."""

    def on_prompt_tokens(self, tokens: PromptTokens) -> None:
        """Do nothing."""

    def on_token(self, token: Token) -> bool:  # noqa: ARG002
        """Go on."""
        return False

    def on_finish(self, outcome: FinishReason | PredictorError) -> None:
        """Tell the loop."""
        self._loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: FinishReason | PredictorError) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
