"""The `kserve.Model`: ties the protocols' codecs to the task, and says whether it is ready."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from predictor.errors import NotReady, Overloaded
from predictor.placement.report import as_json, table
from predictor.protocol.exchange import Exchange, open_exchange  # first: imports kserve safely
from predictor.settings import Settings
from predictor.tasks.request import Completion
from predictor.weights.progress import Progress

from kserve import InferRequest, InferResponse, Model  # isort: skip

if TYPE_CHECKING:  # its import takes seconds, and the ports open first
    from predictor.tasks.generation import TextGeneration

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """An exchange and the completions of its request, in order."""

    exchange: Exchange
    completions: Sequence[Completion]


class PredictorModel(Model):
    """One causal language model, placed over what the pod owns.

    Attributes:
        version: The one version that is served.
        running: Requests that were accepted and are not answered yet.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.model_name)
        self.version = settings.model_version
        self.running = 0
        self._settings = settings
        self._progress = Progress()
        self._task: TextGeneration | None = None
        self._placement: dict[str, Any] = {}
        self._draining = False
        # One thread: the model runs one forward pass at a time, and never on the event loop.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")

    def load(self) -> bool:
        """Plans, loads and warms the model; blocks, so it is called from a thread.

        Raises:
            PredictorError: The model cannot be served here; the sentence says why.
        """
        from predictor import pod, startup

        settings = self._settings
        checkpoint = startup.open_checkpoint(settings)
        resources = pod.read(settings.offload_folder, gpu_fraction=settings.gpu_fraction)
        for note in (*resources.notes, *startup.inherited_notes(settings)):
            logger.warning("%s", note)
        prepared = startup.prepare(settings, checkpoint, resources)
        self._placement = as_json(prepared.placement)
        logger.info("%s", table(prepared.placement))
        self._task = startup.bring_up(settings, prepared, self._progress)
        self.ready = True
        return self.ready

    def drain(self) -> None:
        """Takes no more requests; those that run go on."""
        self._draining = True

    async def healthy(self) -> bool:
        """Returns whether a request would be answered now."""
        return self.ready and not self._draining

    def progress(self) -> dict[str, object]:
        """Returns how far loading is; empty once it is done."""
        return {} if self.ready else self._progress.as_json()

    def metadata(self) -> dict[str, Any]:
        """Returns the platform, and the placement as JSON text."""
        properties = {"placement": json.dumps(self._placement)} if self._placement else {}
        return {"platform": "accelerate-predictor", "properties": properties}

    def validate(self, payload: Any) -> Any:
        """Returns the payload as it is: the codecs check it, and kserve's own check is V1's."""
        return payload

    async def preprocess(
        self, payload: dict[str, object] | bytes | InferRequest, headers: Any = None
    ) -> Exchange:
        """Returns the typed request of a V1 or V2 payload.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            Overloaded: As many requests as may be are running and waiting.
            RequestError: The payload cannot be understood.
        """
        if not await self.healthy():
            raise NotReady(f"Model {self.name!r} is not ready.")
        if self.running >= self._settings.max_requests:
            raise Overloaded(f"{self.running} requests are running and waiting; try again later.")
        return open_exchange(payload, model_name=self.name, model_version=self.version)

    async def predict(
        self, payload: Exchange, headers: Any = None, response_headers: Any = None
    ) -> Answered:
        """Returns the completions of a typed request, generated off the event loop.

        Raises:
            RequestError: A prompt is too long, or empty.
            GenerationFailed: The model failed on it.
        """
        task = self._task
        if task is None:
            raise NotReady(f"Model {self.name!r} is not ready.")
        self.running += 1
        try:
            # What is wrong with a request is said at once, and not after those before it.
            jobs = await asyncio.to_thread(task.prepare, payload.request)
            completions = await asyncio.get_running_loop().run_in_executor(
                self._executor, task.complete, jobs
            )
        finally:
            self.running -= 1
        return Answered(payload, completions)

    async def postprocess(
        self, result: Answered, headers: Any = None, response_headers: Any = None
    ) -> dict[str, object] | InferResponse:
        """Returns the answer in the protocol of the request."""
        return result.exchange.encode(result.completions)

    def stop(self) -> None:
        """Lets nothing new begin; kserve calls this when it unregisters the model."""
        self.drain()
        self.ready = False
        self._task = None
