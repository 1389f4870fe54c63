"""The task of an encoder model: instances become token sequences, the model's results answers.

`EncoderTaskSpec` is what each encoder task implements in a file of its own; `EncoderTask` runs any
of them on the engine.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from predictor.bulk import is_bulk
from predictor.engine.encoding.inputs import EncoderInput, TextEncoder
from predictor.errors import GenerationFailed, PredictorError, RequestError
from predictor.tasks.answers import Answer, Piece
from predictor.tasks.parameters import timeout
from predictor.tasks.request import EncoderInstance, EncoderRequest, TaskRequest
from predictor.tasks.task import Field, Output, RawInstance

_TIMEOUT = "timeout"

Array = np.ndarray[Any, np.dtype[np.float32]]

_FEW_TOKENS = 256
"""Up to so many tokens answers are made on the event loop: that takes less time than another
thread's turn."""


class EncoderTaskSpec(ABC):
    """One encoder task.

    Attributes:
        task: The task's name, as the setting `task` has it.
        fields: The input texts; an instance that is a lone string is the first of them.
        outputs: Every output that an answer may have.
    """

    task: str
    fields: tuple[Field, ...]
    outputs: tuple[Output, ...]

    def request(
        self, parameters: Mapping[str, object], instances: Iterable[RawInstance]
    ) -> EncoderRequest:
        """Return the typed request; see `predictor.tasks.task.TaskSpec.request`."""
        shared = dict(parameters)
        limit = shared.pop(_TIMEOUT, None)
        seconds = None if limit is None else timeout(_TIMEOUT, limit)
        return EncoderRequest(tuple(self._instances(instances, shared)), seconds)

    def _instances(
        self, instances: Iterable[RawInstance], shared: Mapping[str, object]
    ) -> Iterator[EncoderInstance]:
        """Yield the checked instances; the parameters that they share are checked once."""
        checked: Mapping[str, Any] | None = None
        for raw in instances:
            if raw.parameters:
                yield self._instance(raw, shared)
                continue
            if checked is None:
                checked = self._instance(raw, shared).parameters
            yield EncoderInstance(raw.fields, checked)

    def _instance(self, raw: RawInstance, shared: Mapping[str, object]) -> EncoderInstance:
        try:
            return self.decode(raw.fields, {**shared, **raw.parameters})
        except RequestError as error:
            if raw.place and raw.parameters:
                raise RequestError(f"{raw.place}: {error}") from None
            raise

    @abstractmethod
    def decode(
        self, fields: Mapping[str, str], parameters: Mapping[str, object]
    ) -> EncoderInstance:
        """Return a checked instance: its parameters do not depend on its texts.

        Args:
            fields: Texts by the names of `fields`; the required ones are there.
            parameters: Parameters by name, as JSON values.

        Raises:
            RequestError: A parameter is unknown or wrong.
        """

    @abstractmethod
    def tokenize(self, instance: EncoderInstance) -> tuple[EncoderInput, ...]:
        """Return the token sequences of an instance; does not wait for the model.

        Raises:
            RequestError: A text is too long, or lacks what the task needs.
        """

    def tokenize_all(self, instances: Sequence[EncoderInstance]) -> list[tuple[EncoderInput, ...]]:
        """Return the token sequences of each instance; raises the errors of `tokenize`."""
        return [self.tokenize(instance) for instance in instances]

    @abstractmethod
    def answer(
        self,
        instance: EncoderInstance,
        texts: Sequence[EncoderInput],
        results: Sequence[Array],
    ) -> Answer:
        """Return the answer to an instance of the results for its token sequences.

        The shape of a result is that of `engine.encoding.postprocess` for the task.
        """


@dataclass(frozen=True, slots=True)
class _Job:
    """A checked instance and its token sequences."""

    instance: EncoderInstance
    texts: tuple[EncoderInput, ...]


class EncoderTask:
    """Runs an encoder task on an engine.

    Attributes:
        spec: The task.
    """

    def __init__(self, spec: EncoderTaskSpec, engine: TextEncoder) -> None:
        """Create the task of a model whose engine runs."""
        self.spec = spec
        self._engine = engine

    def prepare(self, request: TaskRequest) -> PreparedEncoderRequest:
        """Return the request as tokens; see `predictor.tasks.task.Task.prepare`."""
        if not isinstance(request, EncoderRequest):
            raise TypeError(f"{self.spec.task} does not take a {type(request).__name__}")
        texts = self.spec.tokenize_all(request.instances)
        jobs = [_Job(*job) for job in zip(request.instances, texts, strict=True)]
        return PreparedEncoderRequest(self.spec, self._engine, jobs)


class PreparedEncoderRequest:
    """The token sequences of a request; see `predictor.tasks.task.PreparedRequest`."""

    def __init__(self, spec: EncoderTaskSpec, engine: TextEncoder, jobs: Sequence[_Job]) -> None:
        """Create the request."""
        self._spec = spec
        self._engine = engine
        self._jobs = jobs

    @property
    def text_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text.ids) for job in self._jobs for text in job.texts)

    async def check(self) -> None:
        """Return: all has been checked."""

    async def complete(self) -> tuple[Answer, ...]:
        """Return one answer for each instance, in order. Cancelling this cancels the sequences.

        Raises:
            GenerationFailed: The model failed on one of them.
            EngineBroken: The model failed altogether.
        """
        texts = [text for job in self._jobs for text in job.texts]
        results = await self._run(texts)
        if self.text_tokens <= _FEW_TOKENS:
            return self._answers(results)
        # Aggregating thousands of tokens takes longer than the event loop may stand still.
        return await asyncio.to_thread(self._answers, results)

    def stream(self) -> AsyncGenerator[Piece, None]:
        """Refuse: an encoder task generates no text.

        Raises:
            RequestError: Always.
        """
        raise RequestError(f"This model generates no text; its task is {self._spec.task}.")

    def _answers(self, results: Sequence[Array]) -> tuple[Answer, ...]:
        if not all(bool(np.isfinite(result).all()) for result in results):
            raise GenerationFailed("The model gave no numbers for a text; try another dtype.")
        rows = iter(results)
        return tuple(
            self._spec.answer(job.instance, job.texts, list(itertools.islice(rows, len(job.texts))))
            for job in self._jobs
        )

    async def _run(self, texts: Sequence[EncoderInput]) -> list[Array]:
        """Return the result for each token sequence."""
        outcomes = _Outcomes(len(texts), asyncio.get_running_loop())
        listeners = [partial(outcomes.take, index) for index in range(len(texts))]
        request = self._engine.new_request()
        keys = self._engine.submit_all(texts, listeners, request=request, is_bulk=is_bulk())
        try:
            return await outcomes.results
        finally:
            for index in outcomes.missing():
                self._engine.cancel(keys[index])


class _Outcomes:
    """The outcomes of token sequences, which come in another thread.

    Attributes:
        results: The result of each sequence, once all have one; or the first error.
    """

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._count, self._loop = count, loop
        self._arrays: dict[int, Array] = {}
        self.results: asyncio.Future[list[Array]] = loop.create_future()

    def take(self, index: int, outcome: Any) -> None:
        """Take an outcome; the event loop is woken by the last one, or by an error."""
        self._arrays[index] = outcome
        if isinstance(outcome, PredictorError):
            self._loop.call_soon_threadsafe(self._end, outcome)
        elif len(self._arrays) == self._count:
            self._loop.call_soon_threadsafe(self._end, None)

    def missing(self) -> list[int]:
        """Return the sequences that have no outcome yet."""
        return [index for index in range(self._count) if index not in self._arrays]

    def _end(self, error: PredictorError | None) -> None:
        if self.results.done():
            return
        if error is not None:
            self.results.set_exception(error)
        else:
            self.results.set_result([self._arrays[index] for index in range(self._count)])


def softmax(logits: Array) -> Array:
    """Return the probabilities of logits, over the last dimension."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: Array) -> Array:
    """Return the probability of each logit by itself."""
    with np.errstate(over="ignore"):  # exp(-x) of a very small x is infinite, and 1 / inf is 0
        probabilities: Array = np.reciprocal(1 + np.exp(-logits))
    return probabilities
