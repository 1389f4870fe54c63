"""The engine in the other process, as tasks use it in this one.

A thread receives the results and calls the callbacks, so that the event loop need not. A sequence
ends here when its callback says so (a stop sequence); the engine learns of it as a cancellation.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from predictor.engine.encoding.inputs import EncoderCallback, EncoderInput
from predictor.engine.generation.grammar import Vocabulary
from predictor.engine.generation.prompt_tokens import PromptTokens
from predictor.engine.generation.sampling_params import (
    CachedPrompt,
    Queued,
    SamplingParams,
    SequenceCallback,
    Token,
)
from predictor.engine.model_thread import request_failed
from predictor.engine.process.channel import Channel
from predictor.engine.process.messages import (
    AdapterLoaded,
    Broken,
    Cancel,
    Encode,
    ExpertsUsed,
    Generate,
    LoadAdapter,
    Loading,
    Results,
    UnloadAdapter,
    UseVocabulary,
    is_last,
)
from predictor.engine.process.timed_callback import TimedCallback
from predictor.errors import EngineBroken, PredictorError
from predictor.heartbeat import Health, ReportedHealth, Timeouts
from predictor.metric_updates import apply_updates
from predictor.mixture.heat import LayerHeat
from predictor.sequence_times import SequenceTimes, current_times

logger = logging.getLogger(__name__)

Callback = TypeVar("Callback")


class EngineClient(Generic[Callback]):
    """Submits to the engine process and calls the callbacks.

    Attributes:
        expert_heat: The heat of each layer's experts, as last reported.
        progress: The progress of weights that arrive while requests are answered; empty at first.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        on_broken: Callable[[EngineBroken], None],
        ended: Callable[[], EngineBroken],
    ) -> None:
        """Begin to receive.

        Args:
            channel: The channel to a process whose engine runs.
            on_broken: Called, last of all, if the engine is broken or its process has ended.
            ended: Returns the error of a process that has ended.
        """
        self.expert_heat: tuple[LayerHeat, ...] = ()
        self.progress: dict[str, object] = {}
        self._channel = channel
        self._on_broken = on_broken
        self._ended = ended
        self._keys = itertools.count()
        self._callbacks: dict[int, Callback] = {}
        self._adapters: dict[str, Future[None]] = {}
        self._broken: EngineBroken | None = None
        self._reported = ReportedHealth()
        self._lock = threading.Lock()
        threading.Thread(target=self._receive, name="results", daemon=True).start()

    def new_request(self) -> int:
        """Return a number for a client's request, under which all that it submits is known."""
        return next(self._keys)

    def cancel(self, key: int) -> None:
        """Forget a sequence or a text. Its callback is not called again, once it has returned."""
        if self._callbacks.pop(key, None) is not None:
            self._channel.send(Cancel(key))

    def health(self, timeouts: Timeouts) -> Health:
        """Return what the engine process last reported, or that it reports nothing if worse."""
        return self._reported.health(timeouts)

    def abandon(self, error: EngineBroken) -> None:
        """End all sequences with an error: the engine is broken, hangs or has ended."""
        with self._lock:
            if self._broken is not None:
                return
            self._broken = error
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
            adapters = list(self._adapters.values())
            self._adapters.clear()
        for callback in callbacks:
            self._end(callback, error)
        for adapter in adapters:
            adapter.set_exception(error)
        self._on_broken(error)

    def _register(self, callbacks: Sequence[Callback]) -> list[int]:
        """Return a key for each callback, which is called with what is submitted under the key."""
        keys = list(itertools.islice(self._keys, len(callbacks)))
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._callbacks.update(zip(keys, callbacks, strict=True))
        return keys

    def _receive(self) -> None:
        try:
            self._receive_all()
        # Else nobody would hear of any result.
        except Exception:
            logger.exception("The results of the engine process cannot be received")
            self.abandon(EngineBroken("The results of the engine process cannot be received."))

    def _receive_all(self) -> None:
        while True:
            message = self._channel.receive()
            self._reported.hear()
            if isinstance(message, Health):
                self._reported.last = message
            elif isinstance(message, Results):
                apply_updates(message.updates)
                for key, item in message.items:
                    self._take(key, item)
            elif isinstance(message, ExpertsUsed):
                apply_updates(message.updates)
                self.expert_heat = message.layers
            elif isinstance(message, Loading):
                self.progress = message.progress
            elif isinstance(message, AdapterLoaded):
                self._take_adapter(message)
            elif isinstance(message, Broken):
                self.abandon(message.error)
                return
            elif message is None:
                self.abandon(self._ended())
                return

    def _take_adapter(self, message: AdapterLoaded) -> None:
        with self._lock:
            loading = self._adapters.pop(message.key, None)
        if loading is None:
            return  # abandoned
        if message.error is None:
            loading.set_result(None)
        else:
            loading.set_exception(message.error)

    def _take(self, key: int, item: Any) -> None:
        callback = self._callbacks.get(key)
        if callback is None:
            return  # cancelled
        try:
            is_over = self._call(callback, item)
        # A callback's failure is its own sequence's: the event loop may be gone.
        except Exception:
            logger.exception("A callback failed")
            is_over = True
            self._end(callback, request_failed())
        if is_over and self._callbacks.pop(key, None) is not None and not is_last(item):
            self._channel.send(Cancel(key))

    def _call(self, callback: Callback, item: Any) -> bool:
        """Call a callback with a result; return whether that was the last."""
        raise NotImplementedError

    def _end(self, callback: Callback, error: PredictorError) -> None:
        try:
            self._call(callback, error)
        except Exception:
            logger.exception("A callback failed at its end")


class GenerationClient(EngineClient[SequenceCallback]):
    """A `SequenceGenerator`."""

    def use_vocabulary(self, vocabulary: Vocabulary, most_bytes: int) -> None:
        """Have grammars followed with this vocabulary, in so many bytes of compiled ones."""
        self._channel.send(UseVocabulary(vocabulary, most_bytes))

    def load_adapter(self, key: str, source: str) -> Future[None]:
        """Have an adapter loaded; the future has the error that says why it cannot be.

        Args:
            key: A new name, under which sequences use it.
            source: A directory or a repository on the hub.

        Raises:
            EngineBroken: The engine has ended.
        """
        loading: Future[None] = Future()
        loading.set_running_or_notify_cancel()  # it cannot be cancelled
        with self._lock:
            if self._broken is not None:
                raise self._broken
            self._adapters[key] = loading
        self._channel.send(LoadAdapter(key, source))
        return loading

    def unload_adapter(self, key: str) -> None:
        """Have an adapter forgotten once no sequence uses it."""
        self._channel.send(UnloadAdapter(key))

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        callback: SequenceCallback,
        *,
        request: int | None = None,
        scope: bytes = b"",
        is_bulk: bool = False,
    ) -> int:
        """Hand in a sequence of a request and return its key; do not wait. See `SequenceGenerator`.

        Raises:
            EngineBroken: The engine has ended.
        """
        times = current_times()
        if times is not None:
            callback = TimedCallback(callback, times, times.add_sequence())
        (key,) = self._register([callback])
        is_timed = times is not None
        self._channel.send(Generate(key, request, prompt, params, scope, is_timed, is_bulk))
        return key

    def _call(self, callback: SequenceCallback, item: Any) -> bool:
        if isinstance(item, SequenceTimes):
            if isinstance(callback, TimedCallback):
                callback.times.update(callback.index, item)
            return False
        if isinstance(item, Queued):
            callback.on_queued(item)
            return False
        if isinstance(item, CachedPrompt):
            callback.on_cached_prompt(item)
            return False
        if isinstance(item, PromptTokens):
            callback.on_prompt_tokens(item)
            return False
        if isinstance(item, int):
            item = Token(item)
        if not isinstance(item, Token):
            callback.on_finish(item)
            return True
        if callback.on_token(item):
            callback.on_finish("stop_sequence")
            return True
        return False


class EncoderClient(EngineClient[EncoderCallback]):
    """A `TextEncoder`."""

    def submit_all(
        self,
        texts: Sequence[EncoderInput],
        callbacks: Sequence[EncoderCallback],
        *,
        request: int | None = None,
        is_bulk: bool = False,
    ) -> list[int]:
        """Hand in the texts of a request, in one message, and return their keys; do not wait.

        Raises:
            EngineBroken: The engine has ended.
        """
        keys = self._register(callbacks)
        keyed = zip(keys, texts, strict=True)
        rows = [(key, text.ids, text.types, text.positions) for key, text in keyed]
        self._channel.send(Encode(request, rows, is_bulk))
        return keys

    def _call(self, callback: EncoderCallback, item: Any) -> bool:
        callback(item)
        return True
