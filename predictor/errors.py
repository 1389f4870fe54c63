"""Every error that the predictor raises on purpose, with its HTTP status, gRPC code and exit code.

An error carries one clear sentence. Its class attributes are the HTTP status, the name of the gRPC
status code and the exit code of the process. `protocol.http.errors` and `cli` translate them. Exit
codes follow sysexits.h: 78 is an invalid configuration (a model that does not fit is one), 69 is a
service that cannot be reached, 65 is invalid input. Two phrases of many sentences are made here
too: the message of a library's error, and the nearest valid name.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Collection
from typing import Any

from predictor.sentences import MAX_NAME, shorten


class PredictorError(Exception):
    """An error whose text may be shown to a user as it is."""

    http_status = 500
    grpc_code = "INTERNAL"
    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how it is pickled: by its sentence and its data, not by its constructor."""
        return _restore, (type(self), self.args, self.__dict__)


class ConfigurationError(PredictorError):
    """The settings cannot be applied; a restart will not help."""

    exit_code = 78


class DoesNotFit(ConfigurationError):
    """The model does not fit the resources of the pod.

    Attributes:
        tier: The tier that lacks memory: ``"gpu"``, ``"cpu"`` or ``"disk"``.
        needed: Bytes that this tier would have to hold.
        available: Bytes that it can hold.
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


class ModelUnusable(ConfigurationError):
    """The model cannot compute: its code fails, or it gives no finite numbers in its dtype."""


class ArchiveError(PredictorError):
    """An archive that is to be imported is corrupt, incomplete or not safe to unpack."""

    exit_code = 65


class HubUnreachable(PredictorError):
    """The hub cannot be reached, and its cache lacks files of the model."""

    exit_code = 69


class LoadFailed(PredictorError):
    """Loading the weights failed for a reason that a restart may fix."""


class RequestError(PredictorError):
    """A request cannot be answered because of its content."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"


class PromptTooLong(RequestError):
    """Prompt and reply exceed the model's context.

    Attributes:
        tokens: Tokens that the request needs.
        limit: Tokens of the model's context (``max_model_len``).
    """

    def __init__(self, sentence: str, *, tokens: int, limit: int) -> None:
        super().__init__(sentence)
        self.tokens = tokens
        self.limit = limit


class BodyTooLarge(RequestError):
    """The request's body exceeds the limit."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"


class HeadersTooLarge(RequestError):
    """The request's headers exceed the limit in bytes or in number."""

    http_status = 431
    grpc_code = "RESOURCE_EXHAUSTED"


class UriTooLong(RequestError):
    """The request line exceeds the limit of the headers."""

    http_status = 414
    grpc_code = "RESOURCE_EXHAUSTED"


class RequestTimeout(RequestError):
    """The client took too long to send its request."""

    http_status = 408
    grpc_code = "DEADLINE_EXCEEDED"


class Unauthorized(RequestError):
    """The request has no valid API key."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"


class UnknownModel(RequestError):
    """No model of this name, or no such version of it, is served."""

    http_status = 404
    grpc_code = "NOT_FOUND"


class UnknownVersion(UnknownModel):
    """The model is served, but not in this version."""


class NotReady(PredictorError):
    """The model is loading, or the server is draining."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class Overloaded(PredictorError):
    """The limit of running and waiting requests is reached.

    Attributes:
        retry_after: Seconds after which a request is likely to be admitted.
    """

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, sentence: str, *, retry_after: int) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class DeadlineExceeded(PredictorError):
    """A request was not answered by its deadline, or by that of the server."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"

    @classmethod
    def after(cls, seconds: float) -> DeadlineExceeded:
        """Return the error of a request that took longer than this."""
        return cls(f"The request was not answered within {seconds:g} seconds.")


class EngineBroken(PredictorError):
    """The engine has failed permanently; the process ends and is restarted."""

    http_status = 503
    grpc_code = "UNAVAILABLE"


class WeightsUnreadable(EngineBroken):
    """A streamed block cannot be read any more."""


class GenerationFailed(PredictorError):
    """The model failed on this request; the cause is in the log, not in the answer."""


_DEVICE_ERRORS = frozenset(
    [
        "MemoryError",
        "OutOfMemoryError",
        "AcceleratorError",
        "EngineBroken",
        "TimeoutError",
        "ConnectionError",
    ]
)
"""Classes of errors of devices, networks and memory: Python's, torch's and ours."""

_LASTING = frozenset(
    [
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL),
    ]
)
"""Numbers of an `OSError` that the same files and the same code raise again."""

_VOLUME_ERRORS = (
    errno.EIO,
    errno.ESTALE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.EAGAIN,
)
"""Numbers of errors of volumes, whose messages torch and safetensors put into errors of theirs."""

_DEVICE_WORDS = (
    "allocat",
    "out of memory",
    "cuda error",
    "no cuda gpus",
    "nvidia driver",
    "hip error",
    "cublas",
    "cudnn",
    "cusolver",
    "nccl",
    "start new thread",
    *(os.strerror(number).lower() for number in _VOLUME_ERRORS),
)
"""Parts of the messages of torch's other errors of devices and of memory, in lower case."""

_GENERAL = frozenset(["RuntimeError", "SafetensorError"])
"""Classes of errors of which the message alone tells the kind."""


def _restore(
    kind: type[PredictorError], arguments: tuple[object, ...], data: dict[str, object]
) -> PredictorError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(data)
    return error


def reason_of(error: BaseException, *, most: int = 200) -> str:
    """Return the message of a library's error as one line, or its class if it has none."""
    line = " ".join((str(error).strip() or type(error).__name__).split())
    return shorten(line, most, ellipsis="")


def unexpected(error: BaseException) -> str:
    """Return the sentence for an error of no class of ours, whose trace has been logged."""
    return f"An error that nobody expected, {type(error).__name__}; the log has its trace."


def start_error(error: Exception, sentence: str) -> PredictorError:
    """Return the error of a start that a library's error ends, by whether a restart may help.

    Args:
        error: The library's error.
        sentence: The sentence.
    """
    return (LoadFailed if restart_may_help(error) else ModelUnusable)(sentence)


def restart_may_help(error: BaseException) -> bool:
    """Return whether an error is one of devices, volumes or memory, and not of a model's code.

    torch raises many errors of devices and of memory as a plain `RuntimeError`. An `OSError` is one
    of a volume by its number; transformers raises many without, for files that a model lacks.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if not names.isdisjoint(_DEVICE_ERRORS):
        return True
    if isinstance(error, OSError):
        if error.errno is None and error.__cause__ is not None:
            return restart_may_help(error.__cause__)
        return error.errno is not None and error.errno not in _LASTING
    text = str(error).lower()
    return not names.isdisjoint(_GENERAL) and any(word in text for word in _DEVICE_WORDS)


def nearest(name: str, choices: Collection[str]) -> str:
    """Return the end of a sentence: ``did you mean 'x'?``, or all valid choices."""
    near = difflib.get_close_matches(shorten(name, MAX_NAME, ellipsis=""), choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(choices)}."
