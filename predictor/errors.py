"""Every error that the predictor raises on purpose, and what each means to the outside.

An error carries one clear sentence and, as class attributes, its meaning on each border: the HTTP
status, the name of the gRPC status code and the process's exit code. The translation itself is
done at one place for each border (`protocol.errors`, `cli`). Exit codes follow sysexits.h: 78 is a
wrong configuration (what does not fit among them), 69 is a service that cannot be reached, 65 is
input that cannot be used. Two phrases that many sentences need, what a library said and which name
is nearest, are made here too.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from predictor.sentences import MAX_NAME, shorten


class PredictorError(Exception):
    """An error whose text may be shown to a user as it is."""

    http_status = 500
    grpc_code = "INTERNAL"
    exit_code = 1


class ConfigurationError(PredictorError):
    """The settings cannot be applied; a restart will not help."""

    exit_code = 78


class DoesNotFit(ConfigurationError):
    """The model cannot be placed within what the pod owns.

    Attributes:
        tier: The tier that lacks memory: ``"gpu"``, ``"cpu"`` or ``"disk"``.
        needed: Bytes that this tier would have to hold.
        available: Bytes that it has.
        remedies: The smallest changes that would each make the model fit, as phrases.
    """

    def __init__(
        self, sentence: str, *, tier: str, needed: int, available: int, remedies: tuple[str, ...]
    ) -> None:
        super().__init__(sentence)
        self.tier = tier
        self.needed = needed
        self.available = available
        self.remedies = remedies


class CheckpointError(ConfigurationError):
    """The model's files are missing, incomplete or of a kind that is not allowed."""


class ArchiveError(PredictorError):
    """What is to be imported is broken, incomplete or not safe to unpack."""

    exit_code = 65


class HubUnreachable(PredictorError):
    """The model has to come from the hub and the hub cannot be reached."""

    exit_code = 69


class LoadFailed(PredictorError):
    """Loading the weights failed for a reason that a restart may mend."""


class RequestError(PredictorError):
    """A request cannot be answered because of what it says."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class PromptTooLong(RequestError):
    """Prompt and reply do not fit the model's context.

    Attributes:
        tokens: Tokens that the request needs.
        limit: Tokens that there are (``max_model_len``).
    """

    def __init__(self, sentence: str, *, tokens: int, limit: int) -> None:
        super().__init__(sentence)
        self.tokens = tokens
        self.limit = limit


class BodyTooLarge(RequestError):
    """The request's body is over the limit."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class UnknownModel(RequestError):
    """No model of this name, or no such version of it, is served."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class UnknownVersion(UnknownModel):
    """The model is served, but not in this version."""


class NotReady(PredictorError):
    """The model is being loaded, or the server is draining."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class Overloaded(PredictorError):
    """As many requests as may be are running and waiting.

    Attributes:
        retry_after: Seconds after which a place is likely to be free.
    """

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, sentence: str, *, retry_after: int) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class DeadlineExceeded(PredictorError):
    """A request was not answered within the time that it or the server allows."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class EngineBroken(PredictorError):
    """The engine has failed for good; the process ends, to be started again."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class WeightsUnreadable(EngineBroken):
    """A block that is streamed cannot be read any more."""


class GenerationFailed(PredictorError):
    """The model failed on this request; the cause is in the log, not in the answer."""


def reason_of(error: BaseException, *, most: int = 200) -> str:
    """Returns what a library's error says as one line, or its class where it says nothing."""
    line = " ".join((str(error).strip() or type(error).__name__).split())
    return shorten(line, most, ellipsis="")


def nearest(name: str, choices: Collection[str]) -> str:
    """Return the end of a sentence: ``did you mean 'x'?``, or all valid choices."""
    near = difflib.get_close_matches(shorten(name, MAX_NAME, ellipsis=""), choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(choices)}."
