"""The hub's answers: the time that one may take, and the error that each kind of failure is.

An outage is `HubUnreachable`, and its message is the reason alone. An answer that denies access, or
says that there is no such model, is an error that no cache makes good.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from predictor.errors import (
    CheckpointError,
    ConfigurationError,
    HubUnreachable,
    PredictorError,
    reason_of,
)

Result = TypeVar("Result")

_OUTAGES = (408, 425, 429)
"""Statuses below 500 that say that the hub cannot answer now."""

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a cache that takes no files. An OSError may also be of the network, or say that a
download is incomplete."""


def answered_within(seconds: float | None, call: Callable[[], Result]) -> Result:
    """Return the result of a call, or raise its error.

    The libraries' own timeouts hold for each read and each address, and not for the resolver. So
    the call runs in a thread, which is left alone if it does not end in time.

    Raises:
        HubUnreachable: The call took longer.
    """
    if seconds is None:
        return call()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise HubUnreachable(f"no answer in {seconds:g} s")
    return results[0]


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Translate the hub's errors into ours: an outage is `HubUnreachable` with its reason."""
    try:
        yield
    except PredictorError:
        raise
    # An answer that is no hub's, such as a portal's page, is a ValueError or a TypeError, and a
    # failed download by hf_xet a RuntimeError.
    except (HTTPError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise _translate(name, error) from None


def _translate(name: str, error: BaseException) -> PredictorError:
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return ConfigurationError(f"{name} is gated: accept its terms on the hub and set HF_TOKEN.")
    if isinstance(error, HFValidationError):
        return CheckpointError(f"{name} is no name of a model on the hub.")
    if isinstance(error, HfHubHTTPError):
        return _translate_status(name, error)
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachable("HF_HUB_OFFLINE is set")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return CheckpointError(f"{name} cannot be kept in {constants.HF_HOME}: {error.strerror}.")
    return HubUnreachable(reason_of(error, most=120).rstrip("."))


def _translate_status(name: str, error: HfHubHTTPError) -> PredictorError:
    status = error.response.status_code
    is_denied = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError)
    if is_denied or status in (401, 403):
        return CheckpointError(f"The hub has no {name}, or HF_TOKEN gives no access to it.")
    if status in _OUTAGES or not 400 <= status < 500:
        return HubUnreachable(f"status {status}")
    return CheckpointError(f"The hub refuses to give {name}: status {status}.")
