"""The interface that every task implements, generation and encoder tasks alike.

A call takes three steps. The task's specification makes a typed request of the texts and parameters
that a protocol decoded (`TaskSpec.request`). The task turns it into tokens (`Task.prepare`). The
prepared request runs on the engine (`PreparedRequest.complete` or `stream`) and gives typed answers
(`predictor.tasks.answers`), which the protocol encodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from predictor.tasks.answers import Answer, Piece
from predictor.tasks.request import TaskRequest


@dataclass(frozen=True, slots=True)
class Field:
    """An input text of a task.

    Attributes:
        name: The field's name.
        aliases: Other names that a protocol may accept.
        required: Whether every instance needs it.
        example: A text that the server's log shows in its example requests.
    """

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    example: str = "Today the weather is really nice."


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a task, as its metadata describes it before there is an answer.

    Attributes:
        name: The output's name.
        datatype: The Open Inference Protocol's name of its element type.
        shape: Its dimensions; -1 for those that depend on the request.
        requested_by: The parameter that adds it to the answer; None if it is always there.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    requested_by: str | None = None


@dataclass(frozen=True, slots=True)
class RawInstance:
    """One instance of a request as a protocol decoded it; the task has not checked it yet.

    Attributes:
        fields: Texts by the names of `TaskSpec.fields`; the required ones are there.
        parameters: Its own parameters by name, which override those of the request.
        place: Where it stands in the request, for errors in its own parameters; empty for nowhere.
    """

    fields: Mapping[str, str]
    parameters: Mapping[str, object] = field(default_factory=dict)
    place: str = ""


class TaskSpec(Protocol):
    """The inputs, parameters and outputs of a task."""

    @property
    def task(self) -> str:
        """The task's name, as the setting `task` has it."""
        ...

    @property
    def fields(self) -> tuple[Field, ...]:
        """The input texts; an instance that is a lone string is the first of them."""
        ...

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Every output that an answer may have."""
        ...

    def request(
        self, parameters: Mapping[str, object], instances: Iterable[RawInstance]
    ) -> TaskRequest:
        """Return the typed request.

        Args:
            parameters: The request's parameters by name, as JSON values.
            instances: The instances, at least one.

        Raises:
            RequestError: A parameter is unknown, of another type or out of range.
        """
        ...


class PreparedRequest(Protocol):
    """A request that has been turned into tokens."""

    @property
    def text_tokens(self) -> int:
        """Tokens of an encoder's texts; 0 where completions count those of their prompts."""
        ...

    async def check(self) -> None:
        """Wait for the checks that `Task.prepare` leaves, since they may take long in one thread.

        It comes before `complete` and `stream`, and holds no thread that other requests need.

        Raises:
            RequestError: The request is faulty.
        """
        ...

    async def complete(self) -> tuple[Answer, ...]:
        """Return one answer for each instance, in order. Cancelling this cancels the sequences.

        Raises:
            GenerationFailed: The model failed on one of them.
            EngineBroken: The model failed altogether.
        """
        ...

    def stream(self) -> AsyncGenerator[Piece, None]:
        """Return the pieces of the replies. Closing the generator cancels the sequences.

        Raises:
            RequestError: The task generates no text.
        """
        ...


class Task(Protocol):
    """A model that answers requests."""

    @property
    def spec(self) -> TaskSpec:
        """Its inputs, parameters and outputs."""
        ...

    def prepare(self, request: TaskRequest) -> PreparedRequest:
        """Return the request as tokens. Blocks while it tokenises; does not wait for the model.

        Args:
            request: A request that `spec` made, or one of its type.

        Raises:
            RequestError: A text is too long, empty or lacks what the task needs.
        """
        ...


async def prepare(task: Task, request: TaskRequest) -> PreparedRequest:
    """Return a request as tokens, checked; what takes long is done in threads.

    Raises:
        RequestError: The request is faulty.
    """
    if request.is_short:
        prepared = task.prepare(request)
    else:
        prepared = await asyncio.to_thread(task.prepare, request)
    await prepared.check()
    return prepared
