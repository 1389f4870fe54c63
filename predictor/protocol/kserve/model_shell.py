"""A served model as a ``kserve.Model``, for callers that use it as such.

The SDK registers it. Our own endpoints do not come this way: they call `answer` and `stream`.
"""

from __future__ import annotations

from collections.abc import Mapping

from predictor.cache_scope import ONE_SCOPE, ScopeHeader
from predictor.placement.plan import Placement
from predictor.protocol.http.deadline import requested_timeout  # first: imports kserve safely
from predictor.protocol.kserve.decoded_call import AnsweredCall, DecodedCall, decode_call
from predictor.protocol.response_style import ResponseStyle
from predictor.tasks.answers import Answer
from predictor.tasks.request import TaskRequest
from predictor.tasks.task import TaskSpec

from kserve import InferRequest, InferResponse, Model  # isort: skip

Headers = Mapping[str, str] | None


class ModelShell(Model):
    """The methods of a ``kserve.Model`` around those of a `ServedModel`, which a subclass has.

    Attributes:
        version: Its only version.
        style: How V1 and V2 requests are read that leave something open.
        spec: Inputs, parameters and outputs of its task.
        placement: Where the parts of the model are; None until it is decided.
        scope_header: The header with a request's scope in the prefix cache.
    """

    version: str
    style: ResponseStyle
    spec: TaskSpec
    placement: Placement | None = None
    scope_header: ScopeHeader = ONE_SCOPE

    def check_open(self) -> None:
        """Return if a request may come in now; see `ServedModel`."""
        raise NotImplementedError

    async def answer(self, request: TaskRequest, timeout: float | None) -> tuple[Answer, ...]:
        """Return an answer for each prompt or instance; see `ServedModel`."""
        raise NotImplementedError

    def validate(self, payload: DecodedCall) -> DecodedCall:
        """Return the payload as it is: it has been checked, and kserve's own check is V1's."""
        return payload

    async def preprocess(
        self, payload: dict[str, object] | bytes | InferRequest, headers: Headers = None
    ) -> DecodedCall:
        """Return the typed request of a V1 or V2 payload.

        Raises:
            NotReady: The model is not loaded, or the server drains.
            RequestError: The payload is not a valid request.
        """
        self.check_open()
        return decode_call(
            payload,
            model_name=self.name,
            model_version=self.version,
            spec=self.spec,
            style=self.style,
        )

    async def predict(
        self, payload: DecodedCall, headers: Headers = None, response_headers: object = None
    ) -> AnsweredCall:
        """Return the answers to a typed request; raises the errors of `answer`."""
        with self.scope_header.applied((headers or {}).items()):
            answers = await self.answer(payload.request, requested_timeout(headers))
        return AnsweredCall(payload, answers)

    async def postprocess(
        self, result: AnsweredCall, headers: Headers = None, response_headers: object = None
    ) -> dict[str, object] | InferResponse:
        """Return the answers in the protocol of the payload."""
        return result.call.encode(result.answers)
