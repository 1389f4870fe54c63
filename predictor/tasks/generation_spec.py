"""The signature of text generation: a prompt and parameters in, a completion out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from predictor.errors import RequestError
from predictor.tasks.parameters import NAMES, parse_parameters
from predictor.tasks.request import (
    DEFAULT_PARAMETERS,
    GenerationParameters,
    GenerationRequest,
    Prompt,
)
from predictor.tasks.task import Field, Output, RawInstance


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """Text generation; see `predictor.tasks.task.TaskSpec` for what it implements.

    Attributes:
        defaults: Parameters that hold where a request does not specify them.
    """

    defaults: GenerationParameters = DEFAULT_PARAMETERS
    task: ClassVar[str] = "text_generation"
    fields: ClassVar[tuple[Field, ...]] = (
        Field(
            "text",
            aliases=("prompt", "data", "body"),
            example="Today the weather is really nice and I am planning on",
        ),
    )
    outputs: ClassVar[tuple[Output, ...]] = (
        Output("text", "BYTES", (-1,)),
        Output("finish_reason", "BYTES", (-1,)),
        Output("prompt_tokens", "INT32", (-1,)),
        Output("completion_tokens", "INT32", (-1,)),
    )
    parameter_names: ClassVar[tuple[str, ...]] = NAMES

    def request(
        self, parameters: Mapping[str, object], instances: Iterable[RawInstance]
    ) -> GenerationRequest:
        """Return the typed request; a parameter that is null is the same as an absent one."""
        shared = self._parse(parameters)
        return GenerationRequest(
            tuple(
                Prompt(each.fields["text"], self._own(each, parameters) or shared)
                for each in instances
            )
        )

    def _own(
        self, instance: RawInstance, shared: Mapping[str, object]
    ) -> GenerationParameters | None:
        """Return the parameters of an instance that has its own."""
        own = {name: value for name, value in instance.parameters.items() if value is not None}
        if not own:
            return None
        try:
            return self._parse({**shared, **own})
        except RequestError as error:
            if instance.place:
                raise RequestError(f"{instance.place}: {error}") from None
            raise

    def _parse(self, parameters: Mapping[str, object]) -> GenerationParameters:
        return parse_parameters(parameters, defaults=self.defaults)
