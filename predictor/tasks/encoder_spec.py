"""What a task is that reads texts: one interface, which every such task implements in one file.

A call goes through four steps, named as the methods are: `decode` makes what a protocol brought
into what is asked; `tokenize` makes texts for the model of that; `run` makes, in the engine's
thread and on the device, what is found for each text of a batch; `encode` makes the answer of that.
Two more show an answer: `prediction` as V1's JSON value, `columns` as V2's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from predictor.engine.encoding.inputs import Batch, Text
from predictor.tasks.request import become_tokens_soon


@dataclass(frozen=True, slots=True)
class Field:
    """A text that is asked with.

    Attributes:
        name: Its name, as V1's key and V2's input.
        aliases: Other keys for it in V1.
        required: Whether it must be there.
        example: A text to show how to ask.
    """

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    example: str = "Today the weather is really nice."


@dataclass(frozen=True, slots=True)
class Output:
    """What is known of a tensor of answers before there is one.

    Attributes:
        name: The V2 output.
        datatype: V2's name of its numbers, or BYTES for texts.
        shape: Its dimensions; -1 for those that a request decides.
        asked_by: The parameter that asks for it; None where it is always there.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    asked_by: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A tensor of answers.

    Attributes:
        name: The V2 output.
        datatype: V2's name of its numbers, or BYTES for texts.
        shape: Its dimensions.
        data: Its elements in row-major order.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing asked: its texts and its parameters by name."""

    fields: Mapping[str, str]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EncoderRequest:
    """What one call asks for: at least one thing.

    Attributes:
        asks: The things, in order.
        timeout: Seconds after which the whole request is given up; None says nothing.
    """

    asks: tuple[Ask, ...]
    timeout: float | None = None

    @property
    def is_short(self) -> bool:
        """Whether it becomes tokens in a moment."""
        return become_tokens_soon(len(text) for ask in self.asks for text in ask.fields.values())


class EncoderTaskSpec(Protocol):
    """A task that reads."""

    @property
    def task(self) -> str:
        """Its name, as the setting has it."""
        ...

    @property
    def fields(self) -> tuple[Field, ...]:
        """What is asked with; the first is what a lone text is."""
        ...

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All that V2 may answer with."""
        ...

    def decode(self, fields: Mapping[str, str], parameters: Mapping[str, object]) -> Ask:
        """Returns what is asked.

        Args:
            fields: Texts by the names of `fields`; those that are required are there.
            parameters: Parameters by name, as JSON values.

        Raises:
            RequestError: A parameter is unknown or wrong.
        """
        ...

    def tokenize(self, ask: Ask) -> tuple[Text, ...]:
        """Returns the texts to be read; waits for nothing.

        Raises:
            RequestError: A text is too long, or has not what the task needs.
        """
        ...

    def run(self, output: Any, batch: Batch) -> Sequence[Any]:
        """Returns what is found for each row, in main memory, of a model's output."""
        ...

    def encode(self, ask: Ask, texts: Sequence[Text], found: Sequence[Any]) -> Any:
        """Returns the answer of what was found for each text."""
        ...

    def prediction(self, answer: Any) -> object:
        """Returns an answer as a JSON value."""
        ...

    def columns(self, answers: Sequence[Any]) -> tuple[Column, ...]:
        """Returns answers as tensors."""
        ...
