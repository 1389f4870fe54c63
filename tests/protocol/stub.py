"""A stub model behind the real borders: it echoes every prompt upper-cased and runs nothing.

Everything around it is real: kserve's `Model`, kserve's own routes and handlers behind ours,
uvicorn and grpc.aio on loopback sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import kserve
import uvicorn
from fastapi import FastAPI

from predictor.admission import AdmissionController, AdmissionLimits
from predictor.cache_scope import ONE_SCOPE, ScopeHeader, current_scope
from predictor.errors import NotReady
from predictor.mixture.heat import LayerHeat
from predictor.placement.plan import Placement
from predictor.protocol import sdk
from predictor.protocol.app import Surface, install
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.http.certificate import Certificate
from predictor.protocol.http.connections import ConnectionLimits
from predictor.protocol.http.guarded_protocol import guarded_protocol
from predictor.protocol.kserve.grpc_bounds import GrpcBounds
from predictor.protocol.kserve.grpc_server import make_server
from predictor.protocol.response_style import OUR_STYLE
from predictor.protocol.served import Limits
from predictor.tasks.answers import Completion, Piece, ScoredToken, Stream
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import Conversation, GenerationRequest, Prompt
from predictor.tasks.task import TaskSpec, prepare
from predictor.tasks.text_tokens import TextTokens

MAX_BODY_BYTES = 256 * 1024
DEFAULT_LIMITS = ConnectionLimits()
DEFAULT_ADMISSION = AdmissionLimits(128, 4 * 1024**2, 8192, 2 * 1024**2)


class EchoModel(kserve.Model):
    """Answers every prompt with itself, upper-cased; tests set what it should do besides."""

    def __init__(self, name: str = "echo", version: str = "1") -> None:
        super().__init__(name)
        self.version = version
        self.style = OUR_STYLE
        self.task: Any = None
        self.ready = True
        self.failure: Exception | None = None
        self.late_failure: Exception | None = None
        self.timeouts: list[float | None] = []
        self.scopes: list[bytes] = []
        self.loading: dict[str, object] = {}
        self.heat: Sequence[LayerHeat] = ()
        self.placement: Placement | None = None
        self.requests: list[GenerationRequest] = []
        self.held = False
        self.answers = 1
        self.tokens: TextTokens | None = None

    def progress(self) -> dict[str, object]:
        return self.loading

    def limits(self) -> Limits:
        return Limits(
            running=2, max_requests=10, max_batch_size=4, request_timeout=60.0, memory=2**21
        )

    def text_tokens(self) -> TextTokens:
        assert self.tokens is not None, "a test of tokens sets them"
        return self.tokens

    def metadata(self) -> dict[str, Any]:
        placement = {"gpu": 0, "cpu": 2, "disk": 1}
        return {"platform": "stub", "properties": {"placement": placement, "dtype": "none"}}

    def expert_heat(self) -> Sequence[LayerHeat]:
        return self.heat

    def load(self) -> bool:
        raise AssertionError("no request may load a model")

    @property
    def spec(self) -> TaskSpec:
        if self.task is None:
            return GenerationSpec(self.style.defaults)
        return self.style.applied_to(self.task.spec)

    def check_open(self) -> None:
        if not self.ready:
            raise NotReady(f"Model {self.name!r} is not ready.")

    async def answer(self, request: Any, timeout: float | None) -> tuple[Any, ...]:
        if self.task is not None:
            prepared: Any = await prepare(self.task, request)
            answers: tuple[Any, ...] = await prepared.complete()
            return answers
        self._take(request, timeout)
        await self._until_let_go()
        return tuple(_completion(prompt, self.answers) for prompt in request.prompts)

    async def stream(self, request: GenerationRequest, timeout: float | None) -> Stream:
        deadline = asyncio.get_running_loop().time() + 60
        if self.task is not None:
            prepared = await prepare(self.task, request)
            return Stream(prepared.stream(), deadline, lambda: None)
        self._take(request, timeout)
        return Stream(self._pieces(request), deadline, lambda: None)

    async def _until_let_go(self) -> None:
        while self.held:
            await asyncio.sleep(0.005)

    def _take(self, request: GenerationRequest, timeout: float | None) -> None:
        if self.failure:
            raise self.failure
        self.requests.append(request)
        self.timeouts.append(timeout)
        self.scopes.append(current_scope(request.cache_salt))

    async def _pieces(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """A piece for each character; those of several prompts take turns."""
        await self._until_let_go()
        done = [_completion(prompt) for prompt in request.prompts]
        for position in range(max(len(completion.text) for completion in done)):
            for index, completion in enumerate(done):
                if position < len(completion.text):
                    yield _piece(index, completion, position)
        if self.late_failure:
            raise self.late_failure


def _completion(prompt: Prompt, times: int = 1) -> Completion:
    """The prompt upper-cased; each character is a token, half as likely as the one before."""
    given = _text(prompt)
    text = given.upper() * times
    scored = prompt.parameters.logprobs is not None
    tokens = tuple(
        ScoredToken(
            ord(char),
            char,
            -0.5 * (n + 1),
            top=((char, -0.5 * (n + 1)), ("?", -9.0)),
            top_ids=(ord(char), ord("?")),
            top_special=(False, False),
        )
        for n, char in enumerate(text if scored else "")
    )
    return Completion(text, "eos_token", len(given), len(given), tokens)


def _text(prompt: Prompt) -> str:
    if isinstance(prompt.text, str):
        return prompt.text
    if isinstance(prompt.text, Conversation):
        return " ".join(f"{turn.role}: {turn.content}" for turn in prompt.text.messages)
    return " ".join(f"#{token}" for token in prompt.text)


def _piece(index: int, whole: Completion, position: int) -> Piece:
    after = position + 1
    return Piece(
        index,
        whole.text[position:after],
        whole.ending if after == len(whole.text) else None,
        whole.prompt_tokens,
        after,
        whole.tokens[position:after],
    )


@dataclass
class Served:
    """A running server and the model behind it."""

    model: EchoModel
    models: kserve.ModelRepository
    admission: AdmissionController
    grpc_timeout: float
    scope_header: ScopeHeader = ONE_SCOPE
    http_port: int = 0
    grpc_port: int = 0
    failures: list[BaseException] = field(default_factory=list)
    web: Any = None
    keys: ApiKeys = field(default_factory=ApiKeys)
    certificate: Certificate | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def tasks(self) -> set[Any]:
        """The HTTP requests that are being answered."""
        return set(self.web.server_state.tasks)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


@contextlib.contextmanager
def serve(
    *,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    admission: AdmissionLimits = DEFAULT_ADMISSION,
    grpc_timeout: float = 20.0,
    certificate: Certificate | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Serves one `EchoModel` over HTTP and gRPC in a thread with an event loop of its own.

    `certificate` gives both TLS; `options` are those of the `Surface`.
    """
    surface = Surface(MAX_BODY_BYTES, **options)
    models = kserve.ModelRepository()
    controller = AdmissionController(admission)
    served = Served(EchoModel(), models, controller, grpc_timeout, surface.scope_header)
    models.update(served.model)
    served.keys, served.certificate = surface.keys, certificate
    app = _application(served, surface)
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    context = certificate and certificate.server_context()
    sdk.guard(config, guarded_protocol(limits, context))
    served.web = web = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    served.http_port = listener.getsockname()[1]
    thread = threading.Thread(target=_run, args=(served, web, listener))
    thread.start()
    try:
        _wait_until_started(served, web)
        yield served
    finally:
        web.should_exit = True
        thread.join(30)
        listener.close()
    assert not served.failures, served.failures


def _application(served: Served, surface: Surface) -> FastAPI:
    """Ours first, then what kserve's ``RESTServer.create_application`` does, in its order."""
    app = FastAPI(docs_url=None, redoc_url=None)  # as the SDK
    install(app, surface, models=served.models, admission=served.admission)
    sdk.add_routes(app, served.models)

    @app.get("/test/unforeseen")
    async def unforeseen() -> None:
        raise KeyError("a secret")

    @app.post("/test/typed")
    async def typed(body: list[int]) -> int:
        return len(body)

    return app


def _run(served: Served, web: uvicorn.Server, listener: socket.socket) -> None:
    try:
        asyncio.run(_serve(served, web, listener))
    except BaseException as error:
        served.failures.append(error)


async def _serve(served: Served, web: uvicorn.Server, listener: socket.socket) -> None:
    bound = make_server(
        served.models,
        host="127.0.0.1",
        port=0,
        keys=served.keys,
        bounds=GrpcBounds(
            served.admission, MAX_BODY_BYTES, timeout=served.grpc_timeout, body_rate=2**30
        ),
        scope_header=served.scope_header,
        access_log=True,
        certificate=served.certificate,
    )
    served.grpc_port = bound.port
    stopping = asyncio.Event()
    grpc_serving = asyncio.create_task(bound.serve(stopping, grace=5))
    await web.serve(sockets=[listener])
    stopping.set()
    await grpc_serving


def _wait_until_started(served: Served, web: uvicorn.Server) -> None:
    deadline = time.monotonic() + 30
    while not web.started:
        assert not served.failures, served.failures
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
