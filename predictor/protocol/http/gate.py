"""The first gate: decides by a request's headers whether its body is read.

Requests without a body (health, metadata, metrics) always pass, however much is in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from starlette.types import Scope

from predictor.admission import AdmissionController, RequestPermit
from predictor.errors import BodyTooLarge, Overloaded
from predictor.metrics import REQUESTS
from predictor.protocol.http.error_forms import api_of

WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
"""Methods of requests that always pass."""

_AHEAD = 64 * 1024
"""Bytes that a body of unknown length may have more than have arrived, until more are claimed."""


class Gate:
    """Admits requests by their headers.

    Attributes:
        max_body_bytes: Largest body.
    """

    def __init__(
        self,
        admission: AdmissionController,
        *,
        max_body_bytes: int,
        model_name: Callable[[], str],
        uploads: Mapping[str, int] | None = None,
    ) -> None:
        """Create the gate.

        Args:
            admission: Counts what is in flight.
            max_body_bytes: Largest body.
            model_name: Returns the name by which refusals are counted.
            uploads: Most bytes of bodies that are written to disk as they arrive, by path. They
                count as `_AHEAD` bytes in flight.
        """
        self.max_body_bytes = max_body_bytes
        self._admission = admission
        self._model_name = model_name
        self._uploads = uploads or {}

    def admit(self, scope: Scope) -> RequestPermit | None:
        """Return the permit of a request, which must be released; None if it needs none.

        Raises:
            BodyTooLarge: The body is announced to be over the limit.
            Overloaded: Too much is in flight.
        """
        headers = dict(scope["headers"])
        announced = int(headers.get(b"content-length", 0))  # the server checked its form
        if announced > self.most_bytes(scope):
            raise self.too_large(scope)
        if scope["method"] in WITHOUT_BODY:
            return None
        is_chunked = b"transfer-encoding" in headers
        with self._counted(scope):
            if scope["path"] in self._uploads:
                return self._admission.admit(_AHEAD)
            return self._admission.admit(self._claim(0) if is_chunked else announced)

    def most_bytes(self, scope: Scope) -> int:
        """Return the most bytes of the body of a request."""
        return self._uploads.get(scope["path"], self.max_body_bytes)

    def held_bytes(self, counted: int, scope: Scope) -> int:
        """Return for how many bytes a body counts, if it is held in memory.

        Args:
            counted: For how many its content counts.
            scope: Its request.
        """
        return min(counted, _AHEAD) if scope["path"] in self._uploads else counted

    def check_content(self, held: int) -> None:
        """Refuse a body that would take more memory than is planned for all.

        Raises:
            BodyTooLarge: Its parts count for too much.
        """
        most = self._admission.limits.body_bytes
        if held > most:
            raise BodyTooLarge(
                "The body has so many numbers, short texts, lists and objects, or commas, quotes "
                f"and brackets in texts, that it counts for more than {most} bytes "
                "(max_bytes_in_flight)."
            )

    def claim(self, permit: RequestPermit, held: int, scope: Scope) -> None:
        """Claim more for a body of which some has arrived, before the rest does.

        Args:
            permit: The permit of its request.
            held: For how many bytes what has arrived counts.
            scope: Its request.

        Raises:
            Overloaded: Too much is in flight.
        """
        if not permit.covers(held):
            announced = any(name == b"content-length" for name, _ in scope["headers"])
            with self._counted(scope):
                permit.claim(held if announced else self._claim(held))

    def _claim(self, held: int) -> int:
        return max(held, min(held + _AHEAD, self.max_body_bytes))

    @contextmanager
    def _counted(self, scope: Scope) -> Iterator[None]:
        try:
            yield
        except Overloaded:
            REQUESTS.labels(self._model_name(), api_of(scope["path"]), "rejected").inc()
            raise

    def too_large(self, scope: Scope) -> BodyTooLarge:
        """Return the error for a body over the limit."""
        return BodyTooLarge(f"The body is larger than the limit of {self.most_bytes(scope)} bytes.")
