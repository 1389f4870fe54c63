"""The interfaces of a served model and of the repository of models, as the protocols use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from predictor.errors import NotReady, RequestError, UnknownModel, UnknownVersion
from predictor.mixture.heat import LayerHeat
from predictor.placement.plan import Placement
from predictor.protocol.response_style import ResponseStyle
from predictor.sentences import quote
from predictor.tasks.answers import Answer, Stream
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import TaskRequest
from predictor.tasks.task import TaskSpec
from predictor.tasks.text_tokens import TextTokens

SERVER_NAME = "accelerate-predictor"
"""The name of this server in metadata and as the owner of its model."""


PLACEHOLDERS = ("dummy", "tgi")
"""Names that clients of Hugging Face's servers send for the one model that those serve:
huggingface_hub's ``InferenceClient``, and the examples of Text Generation Inference."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The capacity of a model.

    Attributes:
        running: Requests that are accepted and not answered yet.
        max_requests: Most such requests.
        max_batch_size: Most sequences that run in one batch.
        request_timeout: Seconds that a request may take.
        memory: Bytes of anonymous memory that the server's processes hold.
    """

    running: int
    max_requests: int
    max_batch_size: int
    request_timeout: float
    memory: int


class ServedModel(Protocol):
    """A model, as the protocols see it.

    Attributes:
        name: Name under which the model answers.
        version: Its only version.
        style: How V1 and V2 requests are read that leave something open.
        spec: Inputs, parameters and outputs of its task.
        placement: Where the parts of the model are; None until it is decided.
    """

    name: str
    version: str
    style: ResponseStyle
    spec: TaskSpec
    placement: Placement | None

    async def healthy(self) -> bool:
        """Return whether the model can answer now."""
        ...

    def progress(self) -> dict[str, object]:
        """Return the progress of loading as JSON values; empty if there is none.

        A model may be ready while weights that stay in memory still arrive.
        """
        ...

    def metadata(self) -> dict[str, Any]:
        """Return ``platform``, a string, and ``properties``, a dict of JSON values."""
        ...

    def expert_heat(self) -> Sequence[LayerHeat]:
        """Return the heat of each layer's experts; empty without experts, and while it loads."""
        ...

    def limits(self) -> Limits:
        """Return the model's capacity and its use now."""
        ...

    def text_tokens(self) -> TextTokens:
        """Return what makes tokens of texts, and texts of tokens.

        Raises:
            NotReady: The model is not loaded.
        """
        ...

    def check_open(self) -> None:
        """Return if a request may come in now.

        Raises:
            NotReady: The model is not loaded, or the server drains.
        """
        ...

    async def answer(self, request: TaskRequest, timeout: float | None) -> tuple[Answer, ...]:
        """Return an answer for each prompt or instance. Cancelling this cancels the request."""
        ...

    async def stream(self, request: TaskRequest, timeout: float | None) -> Stream:
        """Check a request and return the pieces of its replies, which are still to come."""
        ...


class Models(Protocol):
    """The part of kserve's ``ModelRepository`` that is used."""

    def get_model(self, name: str) -> ServedModel | None:
        """Return the model of this name, or None."""
        ...

    def get_models(self) -> Mapping[str, ServedModel]:
        """Return all models by name."""
        ...


def find(models: Models, name: str, version: str | None = None) -> ServedModel:
    """Return the model of this name; an empty or absent version is any version.

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


def find_in_body(models: Models, name: str) -> ServedModel:
    """Return the model that a body names, or the first one for a placeholder.

    Raises:
        UnknownModel: There is no such model.
    """
    if name in PLACEHOLDERS and models.get_model(name) is None:
        name = next(iter(models.get_models()), name)
    return find(models, name)


async def require_ready(model: ServedModel) -> None:
    """Return if the model can answer now.

    Raises:
        NotReady: It cannot.
    """
    if not await model.healthy():
        model.check_open()  # knows the reason
        raise NotReady(f"Model {quote(model.name)} is not ready.")


async def require_generating(model: ServedModel) -> None:
    """Return if the model can answer now, and generates text.

    Raises:
        NotReady: It cannot.
        RequestError: It is a model for another task.
    """
    await require_ready(model)
    if not isinstance(model.spec, GenerationSpec):
        raise RequestError(
            f"Model {quote(model.name)} generates no text; its task is {model.spec.task}."
        )


async def require_task(model: ServedModel, task: str) -> TaskSpec:
    """Return the specification of a model that can answer now, and is for this task.

    Raises:
        NotReady: It cannot.
        RequestError: It is a model for another task.
    """
    await require_ready(model)
    spec = model.spec
    if spec.task != task:
        raise RequestError(f"Model {quote(model.name)} is not for {task}; its task is {spec.task}.")
    return spec


async def all_ready(models: Models) -> bool:
    """Return whether there is a model and every model can answer now.

    That is the protocol's definition of a ready server (``inference_rest.md``, "Server Ready"); the
    SDK always returns true (``dataplane.py``, ``ready``). A server without a model is not ready.
    """
    return bool(models.get_models()) and not await _unready(models)


async def readiness(models: Models) -> tuple[bool, dict[str, object] | None]:
    """Return whether all are ready, as `all_ready`, and the progress of one that still loads."""
    waiting = await _unready(models)
    each = models.get_models().values()
    progress = next(filter(None, (model.progress() for model in waiting or each)), None)
    return bool(each) and not waiting, progress


async def _unready(models: Models) -> list[ServedModel]:
    return [model for model in models.get_models().values() if not await model.healthy()]


def model_list(models: Models, created: int) -> dict[str, object]:
    """Return OpenAI's list of the models.

    Args:
        models: The models that are served.
        created: The Unix time that their objects have.
    """
    return {"object": "list", "data": [model_row(name, created) for name in models.get_models()]}


def model_row(name: str, created: int) -> dict[str, object]:
    """Return OpenAI's object of a model; see `model_list`."""
    return {"id": name, "object": "model", "created": created, "owned_by": SERVER_NAME}
