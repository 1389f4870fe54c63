"""The outputs of encoder tasks as KServe's Hugging Face server names them: one, ``output-0``.

Read in huggingfaceserver 0.20 (``encoder_model.py``, ``get_predict_response``): the index of a
text's class, those of its tokens' classes, the token of a mask, the vector of a text. Other tasks
keep our outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from predictor.tasks.request import TaskRequest
from predictor.tasks.task import Field, Output, RawInstance, TaskSpec

OUTPUT = "output-0"
"""The name of KServe's one output."""

_DATATYPES = {
    "sequence_classification": "INT64",
    "token_classification": "INT64",
    "fill_mask": "BYTES",
    "text_embedding": "FP32",
}
"""The tasks whose answers have another shape in KServe, and their element types."""


@dataclass(frozen=True, slots=True)
class KServeSpec:
    """A task's specification with KServe's output; see `TaskSpec`.

    Attributes:
        spec: The task's own specification.
    """

    spec: TaskSpec

    @property
    def task(self) -> str:
        """The task's name."""
        return self.spec.task

    @property
    def fields(self) -> tuple[Field, ...]:
        """The input texts."""
        return self.spec.fields

    @property
    def outputs(self) -> tuple[Output, ...]:
        """KServe's output, and those that a parameter adds."""
        shapes = {"text_embedding": self.spec.outputs[0].shape, "token_classification": (-1, 1, -1)}
        shape = shapes.get(self.task, (-1,))
        added = (output for output in self.spec.outputs if output.requested_by is not None)
        return (Output(OUTPUT, _DATATYPES[self.task], shape), *added)

    def request(
        self, parameters: Mapping[str, object], instances: Iterable[RawInstance]
    ) -> TaskRequest:
        """Return the typed request."""
        return self.spec.request(parameters, instances)


def with_kserve_output(spec: TaskSpec) -> TaskSpec:
    """Return a task's specification with KServe's output, if it has one there."""
    return KServeSpec(spec) if spec.task in _DATATYPES else spec
