"""What the protocols need of a model and of the repository it is registered in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from predictor.errors import NotReady, RequestError, UnknownModel, UnknownVersion
from predictor.protocol.kserve.response_style import ResponseStyle
from predictor.sentences import quote
from predictor.tasks.encoder_spec import EncoderRequest, EncoderTaskSpec
from predictor.tasks.request import GenerationRequest, Stream


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a model takes at one time.

    Attributes:
        running: Requests that were accepted and are not answered yet.
        max_requests: Most of them.
        max_batch_size: Most sequences that run in one batch.
        request_timeout: Seconds that a request may take.
    """

    running: int
    max_requests: int
    max_batch_size: int
    request_timeout: float


class ServedModel(Protocol):
    """A ``kserve.Model`` with what kserve's does not tell.

    Attributes:
        name: Name under which the model answers.
        version: Its only version.
        style: What it takes a request to mean that leaves something open.
        head: What is asked of it and what it answers, where it reads texts; None where it
            generates.
    """

    name: str
    version: str
    style: ResponseStyle
    head: EncoderTaskSpec | None

    async def healthy(self) -> bool:
        """Returns whether the model can answer now."""
        ...

    def progress(self) -> dict[str, object]:
        """Returns how far loading is, as JSON values; empty if there is nothing to tell."""
        ...

    def metadata(self) -> dict[str, Any]:
        """Returns ``platform``, a string, and ``properties``, a dict of JSON values."""
        ...

    def limits(self) -> Limits:
        """Returns how much it takes, and how much there is now."""
        ...

    async def __call__(
        self, payload: Any, headers: dict[str, str] | None = None
    ) -> tuple[Any, dict[str, str]]:
        """Returns the response to a payload, and headers for it."""
        ...

    async def answer(
        self, request: GenerationRequest | EncoderRequest, timeout: float | None
    ) -> tuple[Any, ...]:
        """Returns a completion for each prompt, or an answer to each thing asked.

        Cancelling this gives their places up.
        """
        ...

    async def stream(self, request: GenerationRequest, timeout: float | None) -> Stream:
        """Checks a request and returns its pieces to come."""
        ...


class Models(Protocol):
    """The part of kserve's ``ModelRepository`` that is used."""

    def get_model(self, name: str) -> ServedModel | None:
        """Returns the model of this name, if there is one."""
        ...

    def get_models(self) -> Mapping[str, ServedModel]:
        """Returns all models by name."""
        ...


def find(models: Models, name: str, version: str | None = None) -> ServedModel:
    """Returns the model of this name; an empty or absent version is any version.

    Raises:
        UnknownModel: There is no such model.
        UnknownVersion: There is, but not in this version.
    """
    model = models.get_model(name)
    if model is None:
        raise UnknownModel(f"There is no model {quote(name)}.")
    if version and version != model.version:
        raise UnknownVersion(
            f"Model {quote(name)} has no version {quote(version)}; it has {model.version!r}."
        )
    return model


async def require_ready(model: ServedModel) -> None:
    """Returns if the model can answer now.

    Raises:
        NotReady: It cannot.
    """
    if not await model.healthy():
        raise NotReady(f"Model {quote(model.name)} is not ready.")


async def require_generating(model: ServedModel) -> None:
    """Returns if the model can answer now, and generates text.

    Raises:
        NotReady: It cannot.
        RequestError: It is a model of another kind.
    """
    await require_ready(model)
    if model.head is not None:
        raise RequestError(
            f"Model {quote(model.name)} generates no text; its task is {model.head.task}."
        )


async def require_task(model: ServedModel, task: str) -> EncoderTaskSpec:
    """Returns the head of a model that can answer now, and is for this task.

    Raises:
        NotReady: It cannot.
        RequestError: It is a model for another task.
    """
    await require_ready(model)
    if model.head is None or model.head.task != task:
        found = "text_generation" if model.head is None else model.head.task
        raise RequestError(f"Model {quote(model.name)} is not for {task}; its task is {found}.")
    return model.head


async def unready(models: Models) -> list[ServedModel]:
    """Returns the models that cannot answer now."""
    return [model for model in models.get_models().values() if not await model.healthy()]


async def all_ready(models: Models) -> bool:
    """Returns whether there is a model and every model can answer now.

    That is what the protocol means by a ready server (``inference_rest.md``, "Server Ready"); the
    SDK says yes always (``dataplane.py``, ``ready``). A server without any model answers nothing,
    so it is not ready.
    """
    return bool(models.get_models()) and not await unready(models)
