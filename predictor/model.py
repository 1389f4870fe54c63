"""The served model: loads itself, and takes requests from the protocols to its task and back.

`answer` and `stream` are the one way of every request, whatever its protocol. `PredictorModel` is
a ``kserve.Model`` as well, so that the SDK can register it; `preprocess`, `predict` and
`postprocess` are a shell around `answer` for callers that use it as such.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from predictor.admission import AdmissionController, Permit
from predictor.errors import DeadlineExceeded, EngineBroken, NotReady
from predictor.metrics import show_placement
from predictor.placement.report import as_json, table
from predictor.protocol.http.deadline import requested_timeout  # first: imports kserve safely
from predictor.protocol.kserve.decoded_call import DecodedCall, decode_call
from predictor.protocol.response_style import OUR_STYLE, ResponseStyle, handler_style
from predictor.protocol.served import Limits
from predictor.settings import Settings
from predictor.tasks.answers import Answer, Piece, Stream
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import TaskRequest
from predictor.tasks.task import PreparedRequest, Task, TaskSpec
from predictor.weights.progress import Progress

from kserve import InferRequest, InferResponse, Model  # isort: skip

if TYPE_CHECKING:  # its import takes seconds, and the ports open first
    from predictor.weights.loader import Loaded

logger = logging.getLogger(__name__)

Headers = Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A decoded payload and its answers, in order."""

    call: DecodedCall
    answers: tuple[Answer, ...]


class PredictorModel(Model):
    """One model, placed over the memory that the pod owns.

    Attributes:
        version: The one version that is served.
        style: How V1 and V2 requests are read that leave something open.
        spec: Inputs, parameters and outputs of the task; those of generation until it is loaded.
    """

    def __init__(
        self, settings: Settings, on_broken: Callable[[EngineBroken], None] | None = None
    ) -> None:
        """Create the model without loading it; `load` does that.

        Args:
            settings: The settings.
            on_broken: Called in another thread when the model has failed for good.
        """
        super().__init__(settings.model_name)
        self.version = settings.model_version
        self.style = _style(settings)
        self.spec: TaskSpec = GenerationSpec(self.style.defaults)
        self._settings = settings
        self._on_broken = on_broken
        self._progress = Progress()
        self._task: Task | None = None
        self._weights: Loaded | None = None
        self._properties: dict[str, str] = {}
        self._draining = False
        self._admission = AdmissionController(settings.max_requests)

    def load(self) -> bool:
        """Plan, load and warm up the model. Blocks, so a thread must call it.

        Raises:
            PredictorError: The model cannot be served here; the sentence gives the reason.
        """
        from predictor import constraints, pod, startup

        settings = self._settings
        checkpoint = startup.open_checkpoint(settings)
        resources = pod.read_resources(settings.offload_folder, gpu_fraction=settings.gpu_fraction)
        for note in (*resources.notes, *constraints.inherited_notes(settings)):
            logger.warning("%s", note)
        prepared = startup.prepare(settings, checkpoint, resources)
        placed = json.dumps(as_json(prepared.placement))
        self._properties = {"task": checkpoint.task, "placement": placed}
        logger.info("%s", table(prepared.placement))
        show_placement(self.name, prepared.placement)
        started = startup.bring_up(settings, prepared, self._progress, self._break)
        self._task, self._weights = started.task, started.weights
        self.spec = _in_style(started.task.spec, self.style)
        self.ready = True
        return self.ready

    def drain(self) -> None:
        """Refuse new requests; those that run go on."""
        self._draining = True

    def release(self) -> None:
        """Release the offload volume. Call this when the process ends in order."""
        if self._weights is not None:
            self._weights.release()

    @property
    def running(self) -> int:
        """Requests that were accepted and are not answered yet."""
        return self._admission.taken

    async def healthy(self) -> bool:
        """Return whether a request would be answered now."""
        return self.ready and not self._draining

    def progress(self) -> dict[str, object]:
        """Return the progress of loading; empty once it is done."""
        return {} if self.ready else self._progress.as_json()

    def limits(self) -> Limits:
        """Return the model's capacity and its use now."""
        settings = self._settings
        return Limits(
            running=self.running,
            max_requests=self._admission.most,
            max_batch_size=settings.max_batch_size,
            request_timeout=settings.request_timeout,
        )

    def metadata(self) -> dict[str, Any]:
        """Return the platform and, once they are known, the task and the placement as JSON."""
        return {"platform": "accelerate-predictor", "properties": self._properties}

    def check_open(self) -> None:
        """Return if one more request may come in now.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            Overloaded: As many requests as allowed are running and waiting.
        """
        self._open_task()

    async def answer(self, request: TaskRequest, timeout: float | None) -> tuple[Answer, ...]:
        """Return an answer for each prompt or instance. Cancelling this cancels the request.

        Args:
            request: The request.
            timeout: Limit in seconds, besides those of the request and of the settings.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            Overloaded: As many requests as allowed are running and waiting.
            RequestError: A text is too long, or empty.
            GenerationFailed: The model failed on it.
            DeadlineExceeded: It took too long.
        """
        task = self._open_task()
        limit = self._limit(request, timeout)
        permit = self._admission.take()
        try:
            async with asyncio.timeout(limit):
                # A mistake in a request is answered at once, not after the requests before it.
                prepared = await _prepare(task, request)
                answers = await prepared.complete()
        except TimeoutError:
            raise _too_late(limit) from None
        finally:
            permit.release()
        self._admission.answered()
        return answers

    async def stream(self, request: TaskRequest, timeout: float | None) -> Stream:
        """Check a request and return the pieces of its replies. Closing them cancels the request.

        Raises the errors of `answer`: those of the request here, later ones while the pieces are
        read.
        """
        task = self._open_task()
        limit = self._limit(request, timeout)
        deadline = asyncio.get_running_loop().time() + limit
        permit = self._admission.take()
        try:
            async with asyncio.timeout_at(deadline):
                prepared = await _prepare(task, request)
            pieces = prepared.stream()
        except TimeoutError:
            permit.release()
            raise _too_late(limit) from None
        except BaseException:
            permit.release()
            raise
        return Stream(self._until(pieces, permit, deadline, limit), deadline)

    async def _until(
        self, pieces: AsyncGenerator[Piece, None], permit: Permit, deadline: float, limit: float
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces until the deadline, then give the permit back."""
        try:
            async with aclosing(pieces):
                while True:
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(pieces)
                    yield piece
        except StopAsyncIteration:
            self._admission.answered()
        except TimeoutError:
            raise _too_late(limit) from None
        finally:
            permit.release()

    def validate(self, payload: DecodedCall) -> DecodedCall:
        """Return the payload as it is: it has been checked, and kserve's own check is V1's."""
        return payload

    async def preprocess(
        self, payload: dict[str, object] | bytes | InferRequest, headers: Headers = None
    ) -> DecodedCall:
        """Return the typed request of a V1 or V2 payload.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            Overloaded: As many requests as allowed are running and waiting.
            RequestError: The payload is not a valid request.
        """
        self.check_open()
        return decode_call(
            payload,
            model_name=self.name,
            model_version=self.version,
            spec=self.spec,
            style=self.style,
        )

    async def predict(
        self, payload: DecodedCall, headers: Headers = None, response_headers: object = None
    ) -> AnsweredCall:
        """Return the answers to a typed request; raises the errors of `answer`."""
        return AnsweredCall(payload, await self.answer(payload.request, requested_timeout(headers)))

    async def postprocess(
        self, result: AnsweredCall, headers: Headers = None, response_headers: object = None
    ) -> dict[str, object] | InferResponse:
        """Return the answers in the protocol of the payload."""
        return result.call.encode(result.answers)

    def stop(self) -> None:
        """Let nothing new begin; kserve calls this when it unregisters the model."""
        self.drain()
        self.ready = False
        self._task = None

    def _open_task(self) -> Task:
        """Return the task if one more request may come in now."""
        task = self._task
        if task is None or not self.ready or self._draining:
            raise NotReady(f"Model {self.name!r} is not ready.")
        self._admission.check()
        return task

    def _limit(self, request: TaskRequest, timeout: float | None) -> float:
        limits = (self._settings.request_timeout, request.timeout, timeout)
        return min(seconds for seconds in limits if seconds is not None)

    def _break(self, error: EngineBroken) -> None:
        """Handle a broken engine, in the engine's thread."""
        self.ready = False
        if self._on_broken is not None:
            self._on_broken(error)


def _style(settings: Settings) -> ResponseStyle:
    """Return TorchServe's style if it is set; `Settings` makes sure of `max_length` then."""
    if settings.torchserve_semantics and settings.max_length is not None:
        return handler_style(settings.max_length)
    return OUR_STYLE


def _in_style(spec: TaskSpec, style: ResponseStyle) -> TaskSpec:
    """Return a task's specification with the style's defaults, which only V1 and V2 use."""
    return replace(spec, defaults=style.defaults) if isinstance(spec, GenerationSpec) else spec


async def _prepare(task: Task, request: TaskRequest) -> PreparedRequest:
    if request.is_short:
        return task.prepare(request)
    return await asyncio.to_thread(task.prepare, request)


def _too_late(limit: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"The request was not answered within {limit:g} seconds.")
