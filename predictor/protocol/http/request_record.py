"""The record of one HTTP request: its id, and what the access line tells of it.

The id is the client's ``X-Request-Id``, or a new one, and goes back with every answer. The line has
numbers and the path alone: no query, no prompt and no reply. What is no plain character of the path
is percent-encoded, so that no path ends the line or looks like one of its fields.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import quote

from starlette.types import Scope

from predictor.sentences import shorten
from predictor.tasks.answers import Answer, Completion, Piece, finish_reason
from predictor.tasks.request import Conversation, GenerationRequest, TaskRequest

REQUEST_ID = "x-request-id"
"""The header of a request's id, both ways."""

RECORD = "predictor.record"
"""The key of a request's record in its ASGI scope."""

CLIENT_CLOSED = 499
"""The status of a request without an answer, whose client hung up; nginx has the same."""

_OPERATIONS = {"text_embedding": "embeddings"}
"""OpenTelemetry's names of tasks; another task has its own."""

_PARAMETERS = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Our parameters by OpenTelemetry's names."""

_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LONGEST_PATH = 128

logger = logging.getLogger("predictor.access")


@dataclass(slots=True)
class RequestRecord:
    """One request.

    Attributes:
        id: Its id.
        method: Its method.
        path: Its path, without the query, percent-encoded.
        status: The status of its answer, or gRPC's name of it; `CLIENT_CLOSED` until there is one.
        prompt_tokens: Tokens of its prompts or texts; None if none were counted.
        completion_tokens: Tokens of its replies; None if it has none.
        first_token: Seconds to the first piece of a stream; None if it is not streamed.
        began: When it came, on the monotonic clock.
        model: The model or adapter that answers; empty until that is known.
        operation: What is requested, by OpenTelemetry's names for generative AI.
        parameters: The sampling parameters that it sets, by the same names.
        finish_reasons: Why its replies ended.
        cached_tokens: Tokens of its prompts that the prefix cache had.
        queue_seconds: Seconds that the last of its replies to begin waited; None if none did.
        failure: The HTTP status of the error that ended a stream; None without one.
    """

    id: str
    method: str
    path: str
    status: int | str = CLIENT_CLOSED
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    began: float = field(default_factory=time.monotonic)
    model: str = ""
    operation: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)
    finish_reasons: list[str] = field(default_factory=list)
    cached_tokens: int = 0
    queue_seconds: float | None = None
    failure: int | None = None

    @classmethod
    def of(cls, scope: Scope) -> RequestRecord:
        """Return the record of a request that begins."""
        given = dict(scope["headers"]).get(REQUEST_ID.encode(), b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        path = shorten(scope["path"], _LONGEST_PATH, ellipsis="...")
        return cls(name, scope["method"], quote(path, "/:"))

    def add(self, answers: Iterable[Answer], text_tokens: int) -> None:
        """Count the tokens of answers, and those of the texts of an encoder."""
        if text_tokens:
            self._count(text_tokens, None)
        for answer in answers:
            if isinstance(answer, Completion):
                self._count(answer.prompt_tokens, answer.completion_tokens)
                self._end(answer)

    def add_piece(self, piece: Piece) -> None:
        """Count the tokens of a streamed reply, at its end."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.began
        if piece.ending is not None:
            self._count(piece.prompt_tokens, piece.completion_tokens)
            self._end(piece)

    def fields(self) -> Mapping[str, object]:
        """Return the fields of the line that have a value."""
        values = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "queue_seconds": _rounded(self.queue_seconds),
            "first_token_seconds": _rounded(self.first_token),
            "seconds": _rounded(time.monotonic() - self.began),
        }
        return {name: value for name, value in values.items() if value is not None}

    def log(self) -> None:
        """Write the access line."""
        fields = self.fields()
        line = " ".join(f"{name}={value}" for name, value in fields.items())
        logger.info("%s", line, extra={"fields": fields})

    def describe(self, model: str, task: str, request: TaskRequest) -> None:
        """Note which model does what with which parameters."""
        self.model, self.operation = model, _OPERATIONS.get(task, task)
        if isinstance(request, GenerationRequest):
            first = request.prompts[0]
            self.model = request.adapter or model
            self.operation = "chat" if isinstance(first.text, Conversation) else "text_completion"
            values = {name: getattr(first.parameters, ours) for name, ours in _PARAMETERS.items()}
            self.parameters = {name: value for name, value in values.items() if value is not None}

    def _end(self, reply: Completion | Piece) -> None:
        if reply.ending is not None:
            self.finish_reasons.append(finish_reason(reply.ending))
        self.cached_tokens += reply.cached_tokens
        if reply.queue_seconds is not None:
            self.queue_seconds = max(self.queue_seconds or 0.0, reply.queue_seconds)

    def _count(self, prompt: int, completion: int | None) -> None:
        self.prompt_tokens = (self.prompt_tokens or 0) + prompt
        if completion is not None:
            self.completion_tokens = (self.completion_tokens or 0) + completion


_current: ContextVar[RequestRecord | None] = ContextVar("request", default=None)


def begin(scope: Scope) -> RequestRecord:
    """Return the record of a request, which is the current one from now on in this context."""
    record = scope[RECORD] = RequestRecord.of(scope)
    _current.set(record)
    return record


def begin_call(path: str, request_id: str) -> RequestRecord:
    """Return the record of a gRPC call, which is the current one from now on in this context."""
    name = request_id if _ID.fullmatch(request_id) else uuid.uuid4().hex
    record = RequestRecord(name, "gRPC", path)
    _current.set(record)
    return record


def current_record() -> RequestRecord | None:
    """Return the record of the current request, if there is one."""
    return _current.get()


def describe(model: str, task: str, request: TaskRequest) -> None:
    """Note which model does what for the current request, if there is one."""
    record = _current.get()
    if record is not None:
        record.describe(model, task, request)


def add_answers(answers: Iterable[Answer], text_tokens: int) -> None:
    """Count answers, and the texts of an encoder, for the current request, if there is one."""
    record = _current.get()
    if record is not None:
        record.add(answers, text_tokens)


def add_piece(piece: Piece) -> None:
    """Count a piece for the current HTTP request, if there is one."""
    record = _current.get()
    if record is not None:
        record.add_piece(piece)


def note_failure(status: int) -> None:
    """Note the error that ended the stream of the current HTTP request, if there is one."""
    record = _current.get()
    if record is not None:
        record.failure = status


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
