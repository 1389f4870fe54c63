"""The task of a model that reads: asked things become texts, and what is found becomes answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from predictor.engine.encoding.engine import EncoderEngine
from predictor.engine.encoding.inputs import Listener, Text
from predictor.errors import GenerationFailed, PredictorError
from predictor.tasks.encoder_spec import Ask, EncoderRequest, EncoderTaskSpec

_FEW_TOKENS = 256
"""Tokens for which answers are made at once, which takes less time than asking another thread."""


@dataclass(frozen=True, slots=True)
class EncoderJob:
    """A checked ask and its texts."""

    ask: Ask
    texts: tuple[Text, ...]


class EncoderTask:
    """Answers with what a head makes of what the model finds.

    Attributes:
        head: What is asked and answered.
    """

    def __init__(self, head: EncoderTaskSpec, reader: EncoderEngine) -> None:
        """Puts the parts together."""
        self.head = head
        self._reader = reader

    def prepare(self, request: EncoderRequest) -> tuple[EncoderJob, ...]:
        """Returns what is to be read for each thing asked; does not wait for the model.

        Raises:
            RequestError: A text is too long, or has not what the task needs.
        """
        return tuple(EncoderJob(ask, self.head.tokenize(ask)) for ask in request.asks)

    async def complete(self, jobs: Sequence[EncoderJob]) -> tuple[Any, ...]:
        """Returns an answer for each job, in order; cancelling this gives their places up.

        Raises:
            GenerationFailed: The model failed on one of them.
            EngineBroken: The model failed altogether.
        """
        texts = [text for job in jobs for text in job.texts]
        found = await self._read(texts)
        if sum(len(text.ids) for text in texts) <= _FEW_TOKENS:
            return self._encode(jobs, found)
        # Aggregating thousands of tokens takes longer than the event loop may stand still.
        return await asyncio.to_thread(self._encode, jobs, found)

    def _encode(self, jobs: Sequence[EncoderJob], found: Sequence[Any]) -> tuple[Any, ...]:
        if not all(_is_finite(one) for one in found):
            raise GenerationFailed("The model gave no numbers for a text; try another dtype.")
        rows = iter(found)
        return tuple(
            self.head.encode(job.ask, job.texts, list(itertools.islice(rows, len(job.texts))))
            for job in jobs
        )

    async def _read(self, texts: Sequence[Text]) -> list[Any]:
        """What is found for each text."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        def listener(place: int) -> Listener:
            def listen(outcome: Any) -> None:
                loop.call_soon_threadsafe(inbox.put_nowait, (place, outcome))

            return listen

        keys: dict[int, int] = {}
        found: dict[int, Any] = {}
        try:
            for place, text in enumerate(texts):
                keys[place] = self._reader.submit(text, listener(place))
            while keys:
                place, outcome = await inbox.get()
                del keys[place]
                if isinstance(outcome, PredictorError):
                    raise outcome
                found[place] = outcome
        finally:
            for key in keys.values():
                self._reader.cancel(key)
        return [found[place] for place in range(len(texts))]


def _is_finite(found: Any) -> bool:
    return not isinstance(found, torch.Tensor) or bool(torch.isfinite(found).all())
