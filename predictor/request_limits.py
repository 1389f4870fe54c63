"""How long a request may take, and its share of what is in flight; bulk work has other limits."""

from __future__ import annotations

import math

from predictor.admission import AdmissionController, Permit
from predictor.bulk import is_bulk
from predictor.errors import RequestError
from predictor.held_permits import release_when_sent
from predictor.tasks.request import GenerationRequest, TaskRequest


def enter(admission: AdmissionController, request: TaskRequest) -> Permit:
    """Return the permit of a decoded request, whose runner has limits of its own for bulk work.

    Raises:
        Overloaded: Too much is in flight.
    """
    if is_bulk():
        return Permit(lambda: None)
    return admission.enter(request.sequences, request.most_tokens)


def leave(permit: Permit, request: TaskRequest) -> None:
    """Release the permit of a request that has ended: if its answer is large, once it is sent."""
    if isinstance(request, GenerationRequest) and request.scores_prompts:
        release_when_sent(permit)
    else:
        permit.release()


def time_limit(request: TaskRequest, timeout: float | None, most: float) -> float:
    """Return the seconds that a request may take, without end for bulk work that sets none.

    Args:
        request: The request.
        timeout: The limit that came beside it, such as in a header.
        most: The server's limit.

    Raises:
        RequestError: The request's own limit is above the server's.
    """
    bound = math.inf if is_bulk() else most
    if request.timeout is not None and request.timeout > bound:
        raise RequestError(
            f"timeout is {request.timeout:g} seconds, and this server's limit {most:g} seconds "
            "(request_timeout). It is in seconds, and not in microseconds as in Triton."
        )
    limits = (bound, request.timeout, timeout)
    return min(seconds for seconds in limits if seconds is not None)
