"""KServe's `ModelServer` with its own life cycle: ports open before loading, and a real drain.

The SDK opens its ports after `load()`, binds every address, lets uvicorn close the socket at the
first SIGTERM and stops the model before its requests are done (see `ModelServer.stop`). Here the
ports open at once, readiness turns true after loading and false at SIGTERM, and running requests
may finish. Whatever hangs, the process ends when the grace period is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import REGISTRY

from predictor import logs
from predictor.adapter_registry import register_adapters
from predictor.batch_service import open_batches
from predictor.cache_scope import ScopeHeader
from predictor.derived_metrics import DerivedMetrics
from predictor.engine_process import EngineProcess
from predictor.errors import EngineBroken
from predictor.metrics import STALLED
from predictor.model import PredictorModel
from predictor.protocol import sdk
from predictor.protocol.app import install
from predictor.protocol.examples import example_requests
from predictor.protocol.http.authentication import ApiKeys
from predictor.protocol.http.codec import CodecProcess
from predictor.protocol.http.guarded_protocol import guarded_protocol
from predictor.protocol.http.listening import listen, url_of
from predictor.protocol.http.off_loop import take_short_turns
from predictor.protocol.http.tracing import open_tracer
from predictor.protocol.kserve.grpc_server import BoundServer, make_server
from predictor.protocol_options import (
    certificate_of,
    connection_limits_of,
    grpc_bounds_of,
    surface_of,
)
from predictor.settings import Settings
from predictor.watchdog import POLL_SECONDS, Watchdog

from kserve import ModelServer  # isort: skip

logger = logging.getLogger(__name__)

_POLL = 0.05

_CODEC_THREADS = 2
"""Threads that decode, tokenise and encode what is large. With each more, the event loop waits
longer for the interpreter's lock. With two, tokenising, which does not hold it, goes on beside
decoding."""

_LAST_SECONDS = 1.0
"""Seconds for the rest of an orderly end, once no request runs or the grace period is over."""


class Server(ModelServer):
    """Serves one model over REST and gRPC until a signal stops it."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineProcess | None = None,
        codec: CodecProcess | None = None,
    ) -> None:
        super().__init__(
            http_port=settings.http_port,
            grpc_port=settings.grpc_port,
            workers=1,
            enable_grpc=settings.enable_grpc,
            enable_latency_logging=False,
            grace_period=int(settings.grace_period),
            timeout_keep_alive=settings.timeout_keep_alive,
        )
        logs.configure(settings.log_level, as_json=settings.log_format == "json")
        logs.quiet()
        self._settings = settings
        self._codec = codec
        self._certificate = certificate_of(settings)
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: EngineBroken | None = None
        self._loaded = False
        self._model = PredictorModel(settings, self._on_broken, engine)
        self.register_model(self._model)
        for alias in settings.model_aliases:
            self.registered_models.update(self._model, alias)
        REGISTRY.register(DerivedMetrics(vllm=settings.vllm_metrics))
        self._keys = ApiKeys(settings.api_keys())
        self._tracer = open_tracer(os.environ)
        adapters = register_adapters(settings, self._model, self.registered_models)
        self._batches = open_batches(settings, self.registered_models)
        install(
            sdk.own_app,
            surface_of(settings, self._keys, adapters, self._tracer),
            models=self.registered_models,
            admission=self._model.admission,
            codec=codec,
            batches=() if self._batches is None else self._batches.routes(),
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then drain and return.

        Raises:
            PredictorError: The model cannot be served here.
        """
        listener = listen(self._settings.host, self._settings.http_port)
        if self._settings.ui:
            logger.info("Open %s/ in a browser", self._url(listener))
        with listener:
            asyncio.run(self._run(listener))

    async def _run(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        take_short_turns()
        self._loop.set_default_executor(ThreadPoolExecutor(_CODEC_THREADS, "codec"))
        certificate = self._certificate
        context = None if certificate is None else certificate.server_context()
        protocol = guarded_protocol(connection_limits_of(self._settings), context)
        http = sdk.rest_server(self, grace_period=1, http_protocol=protocol)
        closing = asyncio.Event()
        serving = [asyncio.create_task(http.serve(sockets=[listener]), name="HTTP")]
        if self.enable_grpc:
            grpc = self._bind_grpc().serve(closing, grace=1.0)
            serving.append(asyncio.create_task(grpc, name="gRPC"))
        for server in serving:
            server.add_done_callback(self._on_server_end)
        while not http.started:
            await asyncio.sleep(_POLL)
        self._handle_signals()
        has_tls = self._certificate is not None
        logger.info("REST on %s", url_of(listener, tls=has_tls))
        try:
            await self._load(self._url(listener))
            watching = asyncio.create_task(self._watch())
            async with self._batches or contextlib.nullcontext():
                await self._stopping.wait()
            watching.cancel()
            await self._drain()
            if self._broken is not None:
                raise self._broken
            await asyncio.to_thread(self._model.release)
        finally:
            self._stopping.set()
            http.should_exit = True
            closing.set()
            await asyncio.gather(*serving, return_exceptions=True)
            if self._tracer is not None:
                await asyncio.to_thread(self._tracer.close)

    def _url(self, listener: socket.socket) -> str:
        has_tls = self._certificate is not None
        return url_of(listener, tls=has_tls, for_clients=True)

    def _bind_grpc(self) -> BoundServer:
        settings = self._settings
        bound = make_server(
            self.registered_models,
            host=settings.host,
            port=settings.grpc_port,
            bounds=grpc_bounds_of(settings, self._model.admission),
            keys=self._keys,
            codec=self._codec,
            scope_header=ScopeHeader(settings.scope_header()),
            tracer=self._tracer,
            access_log=settings.access_log,
            certificate=self._certificate if settings.grpc_tls else None,
        )
        logger.info("gRPC on %s:%d", settings.host, bound.port)
        if self._certificate is not None:
            logger.info("gRPC %s TLS", "has" if settings.grpc_tls else "has no")
        return bound

    def _handle_signals(self) -> None:
        """Replace uvicorn's handlers, which close the port at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._stopping.is_set() or not self._loaded:
            logger.warning("Signal %d: exiting at once", number)
            _exit(128 + number)
        logger.info("Signal %d: draining, %d requests are running", number, self._model.running)
        self._model.drain()
        _end_within(self._settings.grace_period + _LAST_SECONDS, 0)
        self._stopping.set()

    def _on_broken(self, error: EngineBroken) -> None:
        """Stop the server after waiting requests have failed; called in another thread."""
        self._broken = error
        _end_within(self._settings.grace_period + _LAST_SECONDS, error.exit_code)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed, since the server has ended
                self._loop.call_soon_threadsafe(self._stopping.set)

    def _on_server_end(self, server: asyncio.Task[None]) -> None:
        """End the process with a server that ends before the process does."""
        if self._stopping.is_set():
            return
        cause = None if server.cancelled() else server.exception()
        logger.critical("The %s server has ended", server.get_name(), exc_info=cause)
        if not self._loaded:
            _exit(EngineBroken.exit_code)
        self._model.drain()
        self._on_broken(EngineBroken(f"The {server.get_name()} server has ended by itself."))

    async def _watch(self) -> None:
        """Follow the engine's health."""
        show = STALLED.labels(self._model.name).set
        watchdog = Watchdog(self._model.health, show=show, on_dead=self._on_dead)
        while True:
            watchdog.poll()
            await asyncio.sleep(POLL_SECONDS)

    def _on_dead(self, error: EngineBroken) -> None:
        if self._model.client is not None:
            self._model.client.abandon(error)

    async def _load(self, url: str) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(1, "loader") as loader:
            await asyncio.get_running_loop().run_in_executor(loader, self._model.load)
        self._loaded = True
        gc.collect()
        gc.freeze()  # a collection of the millions of objects of libraries would stop every thread
        logger.info("Model %r is ready after %.1f s", self._model.name, time.monotonic() - began)
        torchserve = self._settings.torchserve_api
        logger.info("Try it:\n%s", example_requests(self._model, url, torchserve=torchserve))

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._idle(), self._settings.grace_period)
        except TimeoutError:
            logger.warning("Stopping with %d requests unfinished", self._model.running)
            if self._broken is not None:
                _exit(self._broken.exit_code)
            await asyncio.to_thread(self._model.release)
            _exit(0)

    async def _idle(self) -> None:
        # Until the last answers are written: requests leave the first gate then.
        while self._model.running or self._model.admission.requests:
            await asyncio.sleep(_POLL)


def _exit(code: int) -> None:
    """End the process now, without waiting for the thread of a running forward pass."""
    logging.shutdown()
    os._exit(code)


def _end_within(seconds: float, code: int) -> None:
    """End the process after so many seconds: a volume that hangs may hold up its last steps."""

    def end() -> None:
        os.write(2, b"predictor: Something hangs, so the process ends without its last steps.\n")
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
