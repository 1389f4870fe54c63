"""The served model: takes requests from the protocols to its task and back.

The engine process loads it (`engine_process`).

`answer` and `stream` are the one way of every request, whatever its protocol. `PredictorModel` is
a ``kserve.Model`` as well (`protocol.kserve.model_shell`), so that the SDK can register it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from predictor.admission import AdmissionController, Permit
from predictor.batch_goal import BatchGoal
from predictor.cache_scope import ScopeHeader
from predictor.engine.process.client import EncoderClient, GenerationClient
from predictor.engine.process.messages import Placed
from predictor.engine_process import EngineProcess
from predictor.errors import DeadlineExceeded, EngineBroken, NotReady
from predictor.heartbeat import Health, Timeouts
from predictor.metrics import READY, show_placement
from predictor.mixture.heat import LayerHeat
from predictor.placement.report import as_json
from predictor.pod.memory import read_own_anonymous
from predictor.private.tokenizers import tokenizer_class
from predictor.protocol.http.request_record import add_answers, add_piece, describe
from predictor.protocol.kserve.model_shell import ModelShell
from predictor.protocol.response_style import style_of
from predictor.protocol.served import Limits
from predictor.request_limits import enter, leave, time_limit
from predictor.settings import Settings
from predictor.tasks.answers import Answer, Piece, Stream
from predictor.tasks.generation import TextGeneration
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.loading import TaskOptions, open_checked_tokenizer, open_task
from predictor.tasks.request import TaskRequest
from predictor.tasks.task import Task, TaskSpec, prepare
from predictor.tasks.text_length import lengths_of
from predictor.tasks.text_tokens import TextTokens
from predictor.weights.progress import FILLING


class PredictorModel(ModelShell):
    """One model, placed over the memory that the pod owns.

    Attributes:
        version: The one version that is served.
        style: How V1 and V2 requests are read that leave something open.
        spec: Inputs, parameters and outputs of the task; those of generation until it is loaded.
        admission: Counts what is in flight; the protocols' first gate asks it too.
        client: The engine; None until it is loaded.
    """

    def __init__(
        self,
        settings: Settings,
        on_broken: Callable[[EngineBroken], None] | None = None,
        engine: EngineProcess | None = None,
        goal: BatchGoal | None = None,
    ) -> None:
        """Create the model without loading it; `load` does that.

        Args:
            settings: The settings.
            on_broken: Called in another thread when the model has failed for good.
            engine: The engine process, if it has been started already.
            goal: What the placement is for; None for the requests of a server.
        """
        super().__init__(settings.model_name)
        self.version = settings.model_version
        self.style = style_of(settings)
        self.scope_header = ScopeHeader(settings.scope_header())
        self.spec: TaskSpec = GenerationSpec(self.style.defaults)
        self._settings = settings
        self._on_broken = on_broken
        self._engine, self._goal = engine, goal
        self._progress: dict[str, object] = {"phase": "starting"}
        self._task: Task | None = None
        self._tokenizer: Any = None
        self._tokens: TextTokens | None = None
        self.client: GenerationClient | EncoderClient | None = None
        self._properties: dict[str, str] = {}
        self._draining = False
        self.admission = AdmissionController(settings.admission_limits())
        READY.labels(self.name).set_function(self._is_open)

    def load(self) -> bool:
        """Have the engine process plan, load and warm up the model. Blocks; call it in a thread.

        Raises:
            PredictorError: The model cannot be served here; the sentence gives the reason.
        """
        settings = self._settings
        tokenizer_class(with_torch=settings.trust_remote_code)  # takes memory that the plan sees
        self._engine = engine = self._engine or EngineProcess()
        facts = engine.load(
            settings, goal=self._goal, on_progress=self._on_progress, on_placed=self._on_placed
        )
        kind = EncoderClient if facts.defaults is None else GenerationClient
        self._properties |= {} if facts.unbatched is None else {"unbatched": facts.unbatched}
        self.client = engine.client(kind, self._break)
        options = TaskOptions.of(settings)
        task = open_task(facts, self.client, options=options, tokenizer=self._tokenizer)
        self.spec = self.style.applied_to(task.spec)
        chat = task.conversation_ids if isinstance(task, TextGeneration) else None
        self._tokens = TextTokens(
            self._tokenizer,
            facts.max_model_len,
            facts.vocabulary,
            chat,
            lengths_of(self._tokenizer),
            self.admission,
            options.truncate,
        )
        self._task = task
        self.ready = True
        return True

    def _on_progress(self, numbers: dict[str, object]) -> None:
        self._progress = numbers

    def _on_placed(self, placed: Placed) -> None:
        self._tokenizer = open_checked_tokenizer(
            placed.path, placed.facts, trust_remote_code=self._settings.trust_remote_code
        )
        self.placement = placed.placement
        document = json.dumps(as_json(placed.placement))
        self._properties = {"task": placed.task, "placement": document}
        show_placement(self.name, placed.placement)

    def drain(self) -> None:
        """Refuse new requests; those that run go on."""
        self._draining = True
        self.admission.drain()

    def release(self) -> None:
        """End the engine process, which releases the offload volume."""
        if self._engine is not None:
            self._engine.stop()

    @property
    def running(self) -> int:
        """Requests that were accepted and are not answered yet."""
        return self.admission.running

    def health(self) -> Health:
        """Return whether the engine goes on."""
        timeouts = Timeouts(self._settings.stall_timeout, self._settings.hang_timeout)
        return Health() if self.client is None else self.client.health(timeouts)

    async def healthy(self) -> bool:
        """Return whether a request would be answered now."""
        return self._is_open()

    def progress(self) -> dict[str, object]:
        """Return the progress of loading; empty once all weights that stay are in memory."""
        numbers = (self.client.progress if self.client else {}) or self._progress
        return {} if self.ready and numbers["phase"] != FILLING else numbers

    def expert_heat(self) -> Sequence[LayerHeat]:
        """Return the heat of each layer's experts, as it was some two seconds ago."""
        return () if self.client is None else self.client.expert_heat

    def limits(self) -> Limits:
        """Return the model's capacity and its use now."""
        settings = self._settings
        return Limits(
            running=self.running,
            max_requests=settings.max_requests,
            max_batch_size=settings.max_batch_size,
            request_timeout=settings.request_timeout,
            memory=read_own_anonymous(others=() if self._engine is None else (self._engine.pid,)),
        )

    def metadata(self) -> dict[str, Any]:
        """Return the platform and, once known, the task, the placement and progress as JSON."""
        progress = self.progress()
        loading = {"progress": json.dumps(progress)} if progress else {}
        return {"platform": "accelerate-predictor", "properties": self._properties | loading}

    def text_tokens(self) -> TextTokens:
        """Return what makes tokens of texts, and texts of tokens.

        Raises:
            NotReady: The model is not loaded.
        """
        if self._tokens is None:
            raise NotReady(f"Model {self.name!r} is not ready.")
        return self._tokens

    def check_open(self) -> None:
        """Return if a request may come in now.

        Raises:
            NotReady: The model is not loaded, or the server drains.
        """
        self._open_task()

    async def answer(self, request: TaskRequest, timeout: float | None) -> tuple[Answer, ...]:
        """Return an answer for each prompt or instance. Cancelling this cancels the request.

        Args:
            request: The request.
            timeout: Limit in seconds, besides those of the request and of the settings.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            Overloaded: Too many sequences or tokens are in flight.
            RequestError: A text is too long, or empty.
            GenerationFailed: The model failed on it.
            DeadlineExceeded: It took too long.
        """
        task = self._open_task()
        limit = time_limit(request, timeout, self._settings.request_timeout)
        describe(self.name, self.spec.task, request)
        permit = enter(self.admission, request)
        try:
            async with asyncio.timeout(limit):
                # A mistake in a request is answered at once, not after the requests before it.
                prepared = await prepare(task, request)
                answers = await prepared.complete()
        except TimeoutError:
            raise DeadlineExceeded.after(limit) from None
        finally:
            leave(permit, request)
        add_answers(answers, prepared.text_tokens)
        return answers

    async def stream(self, request: TaskRequest, timeout: float | None) -> Stream:
        """Check a request and return the pieces of its replies. Closing them cancels the request.

        Raises the errors of `answer`: those of the request here, others while pieces are read.
        """
        task = self._open_task()
        limit = time_limit(request, timeout, self._settings.request_timeout)
        deadline = asyncio.get_running_loop().time() + limit
        describe(self.name, self.spec.task, request)
        permit = self.admission.enter(request.sequences, request.most_tokens)
        try:
            async with asyncio.timeout_at(deadline):
                prepared = await prepare(task, request)
            pieces = prepared.stream()
        except TimeoutError:
            permit.release()
            raise DeadlineExceeded.after(limit) from None
        except BaseException:
            permit.release()
            raise
        return Stream(self._until(pieces, permit, deadline, limit), deadline, permit.release)

    async def _until(
        self, pieces: AsyncGenerator[Piece, None], permit: Permit, deadline: float, limit: float
    ) -> AsyncGenerator[Piece, None]:
        """Yield the pieces until the deadline, then give the permit back."""
        try:
            async with aclosing(pieces):
                while True:
                    async with asyncio.timeout_at(deadline):
                        piece = await anext(pieces)
                    add_piece(piece)
                    yield piece
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded.after(limit) from None
        finally:
            permit.release()

    def stop(self) -> None:
        """Let nothing new begin; kserve calls this when it unregisters the model."""
        self.drain()
        self.ready = False
        self._task = None

    def _open_task(self) -> Task:
        """Return the task if a request may come in now."""
        task = self._task
        if task is None or not self.ready or self._draining:
            raise NotReady(f"Model {self.name!r} is not ready.")
        if self.health().state != "ok":
            raise NotReady(f"Model {self.name!r} is stalled: its engine makes no progress.")
        return task

    def _is_open(self) -> bool:
        return self.ready and not self._draining and self.health().state == "ok"

    def _break(self, error: EngineBroken) -> None:
        """Handle a broken engine, in another thread."""
        self.ready = False
        if self._on_broken is not None:
            self._on_broken(error)
