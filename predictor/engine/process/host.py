"""The engine's side of the channel: hands requests in, and sends the results of each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.encoding.inputs import EncoderInput
from predictor.engine.generation.engine import Engine
from predictor.engine.generation.sampling_params import CachedPrompt, FinishReason, Token
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

    def on_cached_prompt(self, cached: CachedPrompt) -> None:
        self.outbox.add(self.key, cached)

    def on_token(self, token: Token) -> bool:
        self.outbox.add(self.key, token.id if token.logprob is None else token)
        return False

    def on_finish(self, outcome: FinishReason | PredictorError) -> None:
        self.outbox.add(self.key, outcome)
        if self.adapters is not None:
            self.adapters.end(self.key)


class EngineHost:
    """Hands the requests of the other process to an engine."""

    def __init__(
        self,
        engine: Engine | EncoderEngine,
        outbox: Outbox,
        adapters: HostedAdapters | None = None,
    ) -> None:
        """Take an engine that runs and calls `Outbox.flush` after each step.

        Args:
            engine: The engine.
            outbox: Collects the results.
            adapters: The adapters that come and go; None if there are none.
        """
        self._engine = engine
        self._outbox = outbox
        self._adapters = adapters

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
                self._engine.use_vocabulary(message.vocabulary)
            elif isinstance(message, Encode) and isinstance(self._engine, EncoderEngine):
                for key, ids, types, positions in message.texts:
                    text, encoded = EncoderInput(ids, types, positions), self._encoded(key)
                    self._engine.submit(text, encoded, request=message.request, key=key)
        except EngineBroken:
            return

    def _generate(self, engine: Engine, message: Generate) -> None:
        adapters, adapter = self._adapters, message.params.adapter
        if adapters is not None and not adapters.begin(message.key, adapter):
            gone = UnknownModel("The adapter was unloaded before the request began.")
            self._outbox.send_now(message.key, gone)
            return
        engine.submit(
            message.prompt,
            message.params,
            _SequenceResults(message.key, self._outbox, adapters),
            request=message.request,
            key=message.key,
            scope=message.scope,
        )

    def _encoded(self, key: int) -> Callable[[Any], None]:
        return lambda result: self._outbox.add(key, result)
