"""The engine's side of the channel: hands requests in, and sends the results of each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.encoding.inputs import EncoderInput
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.prompt_tokens import PromptTokens
from predictor.engine.generation.sampling_params import CachedPrompt, FinishReason, Queued, Token
from predictor.engine.process.channel import Channel
from predictor.engine.process.hosted_adapters import HostedAdapters
from predictor.engine.process.messages import (
    Cancel,
    Encode,
    Generate,
    LoadAdapter,
    Results,
    UnloadAdapter,
    UseVocabulary,
)
from predictor.errors import EngineBroken, PredictorError, UnknownModel
from predictor.metric_updates import MetricRecorder
from predictor.sequence_times import SequenceTimes


class Outbox:
    """Collects results and changes of metrics, and sends those of a step as one message."""

    def __init__(self, channel: Channel, recorder: MetricRecorder) -> None:
        """Collect for a channel.

        Args:
            channel: Takes the messages.
            recorder: Records the changes of metrics.
        """
        self._channel = channel
        self._recorder = recorder
        self._items: list[tuple[int, Any]] = []

    def add(self, key: int, item: Any) -> None:
        """Add a result; called in the model thread."""
        self._items.append((key, item))

    def send_now(self, key: int, item: Any) -> None:
        """Send a result that no step of the model thread gives."""
        self._channel.send(Results([(key, item)], ()))

    def flush(self) -> None:
        """Send what was collected; called in the model thread, after each step."""
        items, self._items = self._items, []
        updates = self._recorder.take()
        if items or updates:
            self._channel.send(Results(items, updates))


@dataclass(frozen=True, slots=True)
class _SequenceResults:
    """The callback of a sequence in the engine process."""

    key: int
    outbox: Outbox
    adapters: HostedAdapters | None
    arrived: float = field(default_factory=time.monotonic)

    def on_start(self) -> None:
        self.outbox.add(self.key, Queued(time.monotonic() - self.arrived))

    def on_queued(self, queued: Queued) -> None:
        """Do nothing: the engine is in this process."""

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        self.outbox.add(self.key, cached)

    def on_prompt_tokens(self, tokens: PromptTokens) -> None:
        self.outbox.add(self.key, tokens)

    def on_token(self, token: Token) -> bool:
        self.outbox.add(self.key, token.id if token.logprob is None else token)
        return False

    def on_finish(self, outcome: FinishReason | PredictorError) -> None:
        self.outbox.add(self.key, outcome)
        if self.adapters is not None:
            self.adapters.end(self.key)


@dataclass(slots=True)
class _TimedResults:
    """The callback of a sequence whose times go with its tokens, and at once when it starts."""

    results: _SequenceResults
    stalled: Callable[[], float]
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    stalls: tuple[float, float] = (0.0, 0.0)

    def on_start(self) -> None:
        self.started = time.monotonic()
        self.stalls = self.stalled(), 0.0
        # Its first step may take long, and the request may end within it.
        times = SequenceTimes(self.arrived, self.started)
        self.results.outbox.send_now(self.results.key, times)
        self.results.on_start()

    def on_queued(self, queued: Queued) -> None:
        """Do nothing: the engine is in this process."""

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        self.results.on_cached_prompt(cached)

    def on_prompt_tokens(self, tokens: PromptTokens) -> None:
        self.results.on_prompt_tokens(tokens)

    def on_token(self, token: Token) -> bool:
        now, stalled = time.monotonic(), self.stalled()
        if not self.first_token:
            self.first_token, self.stalls = now, (self.stalls[0], stalled)
        at_start, at_first = self.stalls
        times = SequenceTimes(
            *(self.arrived, self.started, self.first_token, now),
            prefill_stall=at_first - at_start,
            decode_stall=stalled - at_first,
        )
        self.results.outbox.add(self.results.key, times)
        return self.results.on_token(token)

    def on_finish(self, outcome: FinishReason | PredictorError) -> None:
        self.results.on_finish(outcome)


def _never_stalled() -> float:
    return 0.0


class EngineHost:
    """Hands the requests of the other process to an engine."""

    def __init__(
        self,
        engine: Engine | EncoderEngine,
        outbox: Outbox,
        adapters: HostedAdapters | None = None,
        *,
        stalled: Callable[[], float] = _never_stalled,
    ) -> None:
        """Take an engine that runs and calls `Outbox.flush` after each step.

        Args:
            engine: The engine.
            outbox: Collects the results.
            adapters: The adapters that come and go; None if there are none.
            stalled: Returns the seconds that forward passes have waited for weights so far.
        """
        self._engine = engine
        self._outbox = outbox
        self._adapters = adapters
        self._stalled = stalled

    def handle(self, message: object) -> None:
        """Handle a message from the other process.

        An engine that is broken says so itself; what comes afterwards is dropped.
        """
        try:
            if isinstance(message, Cancel):
                self._engine.cancel(message.key)
                if self._adapters is not None:
                    self._adapters.end(message.key)
            elif isinstance(message, Generate) and isinstance(self._engine, Engine):
                self._generate(self._engine, message)
            elif isinstance(message, LoadAdapter) and self._adapters is not None:
                self._adapters.load(message.key, message.source)
            elif isinstance(message, UnloadAdapter) and self._adapters is not None:
                self._adapters.unload(message.key)
            elif isinstance(message, UseVocabulary) and isinstance(self._engine, Engine):
                self._engine.use_vocabulary(message.vocabulary, message.most_bytes)
            elif isinstance(message, Encode) and isinstance(self._engine, EncoderEngine):
                whole: dict[str, Any] = {"request": message.request, "is_bulk": message.is_bulk}
                for key, ids, types, positions in message.texts:
                    text, encoded = EncoderInput(ids, types, positions), self._encoded(key)
                    self._engine.submit(text, encoded, key=key, **whole)
        except EngineBroken:
            return

    def _generate(self, engine: Engine, message: Generate) -> None:
        adapters, adapter = self._adapters, message.params.adapter
        if adapters is not None and not adapters.begin(message.key, adapter):
            gone = UnknownModel("The adapter was unloaded before the request began.")
            self._outbox.send_now(message.key, gone)
            return
        results = _SequenceResults(message.key, self._outbox, adapters)
        engine.submit(
            message.prompt,
            message.params,
            _TimedResults(results, self._stalled) if message.timed else results,
            request=message.request,
            key=message.key,
            scope=message.scope,
            is_bulk=message.is_bulk,
        )

    def _encoded(self, key: int) -> Callable[[Any], None]:
        return lambda result: self._outbox.add(key, result)
