"""The `kserve.Model`: ties the protocols' codecs to the task, and says whether it is ready."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from predictor.admission import AdmissionController, Permit
from predictor.errors import DeadlineExceeded, EngineBroken, NotReady
from predictor.metrics import show_placement
from predictor.placement.report import as_json, table
from predictor.protocol.http.deadline import asked_timeout  # first: imports kserve safely
from predictor.protocol.kserve.decoded_call import DecodedCall, decode_call
from predictor.protocol.kserve.response_style import OUR_STYLE, ResponseStyle, handler_style
from predictor.protocol.served import Limits
from predictor.settings import Settings
from predictor.tasks.encoder_spec import EncoderRequest, EncoderTaskSpec
from predictor.tasks.request import GenerationRequest, Piece, Stream
from predictor.weights.progress import Progress

from kserve import InferRequest, InferResponse, Model  # isort: skip

if TYPE_CHECKING:  # its import takes seconds, and the ports open first
    from predictor.tasks.loading import Task
    from predictor.weights.loader import Loaded

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """An exchange and what its request is answered with, in order."""

    exchange: DecodedCall
    answers: Sequence[Any]


class PredictorModel(Model):
    """One model, placed over what the pod owns.

    Attributes:
        version: The one version that is served.
        style: What a request means that leaves something open.
        head: What a model that reads is asked and answers, once it is loaded.
    """

    def __init__(
        self, settings: Settings, on_broken: Callable[[EngineBroken], None] | None = None
    ) -> None:
        """Takes the settings; `load` does the work.

        Args:
            settings: The settings.
            on_broken: Is told, in another thread, that the model has failed for good.
        """
        super().__init__(settings.model_name)
        self.version = settings.model_version
        self.style = _style(settings)
        self.head: EncoderTaskSpec | None = None
        self._settings = settings
        self._on_broken = on_broken
        self._progress = Progress()
        self._task: Task | None = None
        self._weights: Loaded | None = None
        self._about: dict[str, str] = {}
        self._draining = False
        self._places = AdmissionController(settings.max_requests)

    def load(self) -> bool:
        """Plans, loads and warms the model; blocks, so it is called from a thread.

        Raises:
            PredictorError: The model cannot be served here; the sentence says why.
        """
        from predictor import constraints, pod, startup

        settings = self._settings
        checkpoint = startup.open_checkpoint(settings)
        resources = pod.read(settings.offload_folder, gpu_fraction=settings.gpu_fraction)
        for note in (*resources.notes, *constraints.inherited_notes(settings)):
            logger.warning("%s", note)
        prepared = startup.prepare(settings, checkpoint, resources)
        placed = json.dumps(as_json(prepared.placement))
        self._about = {"task": checkpoint.task, "placement": placed}
        logger.info("%s", table(prepared.placement))
        show_placement(self.name, prepared.placement)
        started = startup.bring_up(settings, prepared, self._progress, self._break)
        self._task, self._weights = started.task, started.weights
        self.head = started.head
        self.ready = True
        return self.ready

    def drain(self) -> None:
        """Takes no more requests; those that run go on."""
        self._draining = True

    def release(self) -> None:
        """Ends the use of the offload volume; to be called where the process ends as it should."""
        if self._weights is not None:
            self._weights.release()

    @property
    def running(self) -> int:
        """Requests that were accepted and are not answered yet."""
        return self._places.taken

    async def healthy(self) -> bool:
        """Returns whether a request would be answered now."""
        return self.ready and not self._draining

    def progress(self) -> dict[str, object]:
        """Returns how far loading is; empty once it is done."""
        return {} if self.ready else self._progress.as_json()

    def limits(self) -> Limits:
        """Returns how much is taken at one time, and how much there is now."""
        settings = self._settings
        return Limits(
            running=self.running,
            max_requests=self._places.most,
            max_batch_size=settings.max_batch_size,
            request_timeout=settings.request_timeout,
        )

    def metadata(self) -> dict[str, Any]:
        """Returns the platform, and once they are known the task, and the placement as JSON."""
        return {"platform": "accelerate-predictor", "properties": self._about}

    def validate(self, payload: Any) -> Any:
        """Returns the payload as it is: the codecs check it, and kserve's own check is V1's."""
        return payload

    async def preprocess(
        self, payload: dict[str, object] | bytes | InferRequest, headers: Any = None
    ) -> DecodedCall:
        """Returns the typed request of a V1 or V2 payload.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            Overloaded: As many requests as may be are running and waiting.
            RequestError: The payload cannot be understood.
        """
        self._check_open()
        return decode_call(
            payload,
            model_name=self.name,
            model_version=self.version,
            style=self.style,
            head=self.head,
        )

    async def predict(
        self, payload: DecodedCall, headers: Any = None, response_headers: Any = None
    ) -> Answered:
        """Returns what a typed request is answered with, computed off the event loop.

        Raises:
            RequestError: A prompt is too long, or empty.
            GenerationFailed: The model failed on it.
            DeadlineExceeded: It took too long.
        """
        return Answered(payload, await self.answer(payload.request, asked_timeout(headers)))

    async def postprocess(
        self, result: Answered, headers: Any = None, response_headers: Any = None
    ) -> dict[str, object] | InferResponse:
        """Returns the answer in the protocol of the request."""
        return result.exchange.encode(result.answers)

    async def answer(
        self, request: GenerationRequest | EncoderRequest, timeout: float | None
    ) -> tuple[Any, ...]:
        """Returns a completion for each prompt, or an answer to each thing asked.

        Cancelling this gives their places up.

        Args:
            request: The request.
            timeout: Seconds that it may take, besides what it and the settings say.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            Overloaded: As many requests as may be are running and waiting.
            RequestError: A prompt is too long, or empty.
            GenerationFailed: The model failed on it.
            DeadlineExceeded: It took too long.
        """
        task: Any = self._check_open()
        limit = self._limit(request, timeout)
        place = self._places.take()
        try:
            async with asyncio.timeout(limit):
                # What is wrong with a request is said at once, and not after those before it.
                jobs = await _prepare(task, request)
                answers: tuple[Any, ...] = await task.complete(jobs)
        except TimeoutError:
            raise _too_late(limit) from None
        finally:
            place.release()
        self._places.answered()
        return answers

    async def stream(self, request: GenerationRequest, timeout: float | None) -> Stream:
        """Checks a request and returns its pieces to come; closing them gives the places up.

        Raises what `answer` raises, what happens later while the pieces are read.
        """
        task: Any = self._check_open()
        limit = self._limit(request, timeout)
        deadline = asyncio.get_running_loop().time() + limit
        place = self._places.take()
        try:
            async with asyncio.timeout_at(deadline):
                jobs = await _prepare(task, request)
        except TimeoutError:
            place.release()
            raise _too_late(limit) from None
        except BaseException:
            place.release()
            raise
        return Stream(self._pieces(task.stream(jobs), place, deadline, limit), deadline)

    async def _pieces(
        self, pieces: AsyncIterator[Piece], place: Permit, deadline: float, limit: float
    ) -> AsyncIterator[Piece]:
        generator: Any = pieces
        try:
            async with aclosing(generator):
                while True:
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(generator)
                    yield piece
        except StopAsyncIteration:
            self._places.answered()
        except TimeoutError:
            raise _too_late(limit) from None
        finally:
            place.release()

    def stop(self) -> None:
        """Lets nothing new begin; kserve calls this when it unregisters the model."""
        self.drain()
        self.ready = False
        self._task = None

    def _check_open(self) -> Task:
        """Returns the task if one more request may come in now."""
        task = self._task
        if task is None or not self.ready or self._draining:
            raise NotReady(f"Model {self.name!r} is not ready.")
        self._places.check()
        return task

    def _limit(self, request: GenerationRequest | EncoderRequest, timeout: float | None) -> float:
        said = (self._settings.request_timeout, request.timeout, timeout)
        return min(seconds for seconds in said if seconds is not None)

    def _break(self, error: EngineBroken) -> None:
        """Is called in the engine's thread."""
        self.ready = False
        if self._on_broken is not None:
            self._on_broken(error)


def _style(settings: Settings) -> ResponseStyle:
    """TorchServe's where it is asked for; `Settings` sees to `max_length` then."""
    if settings.torchserve_semantics and settings.max_length is not None:
        return handler_style(settings.max_length)
    return OUR_STYLE


async def _prepare(task: Any, request: GenerationRequest | EncoderRequest) -> Any:
    if request.is_short:
        return task.prepare(request)
    return await asyncio.to_thread(task.prepare, request)


def _too_late(limit: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"The request was not answered within {limit:g} seconds.")
