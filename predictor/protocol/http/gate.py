"""The first gate: decides by a request's headers whether its body is read.

Requests without a body (health, metadata, metrics) always pass, however much is in flight.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope

from predictor.admission import AdmissionController, RequestPermit
from predictor.errors import BodyTooLarge, Overloaded
from predictor.metrics import REQUESTS
from predictor.protocol.http.error_forms import api_of

_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


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
    ) -> None:
        """Create the gate.

        Args:
            admission: Counts what is in flight.
            max_body_bytes: Largest body.
            model_name: Returns the name by which refusals are counted.
        """
        self.max_body_bytes = max_body_bytes
        self._admission = admission
        self._model_name = model_name

    def admit(self, scope: Scope) -> RequestPermit | None:
        """Return the permit of a request, which must be released; None if it needs none.

        Raises:
            BodyTooLarge: The body is announced to be over the limit.
            Overloaded: Too much is in flight.
        """
        announced = dict(scope["headers"]).get(b"content-length")  # the server checked its form
        if announced is not None and int(announced) > self.max_body_bytes:
            raise self.too_large()
        if scope["method"] in _WITHOUT_BODY:
            return None
        body_bytes = self.max_body_bytes if announced is None else int(announced)
        try:
            return self._admission.admit(body_bytes)
        except Overloaded:
            REQUESTS.labels(self._model_name(), api_of(scope["path"]), "rejected").inc()
            raise

    def too_large(self) -> BodyTooLarge:
        """Return the error for a body over the limit."""
        return BodyTooLarge(f"The body is larger than the limit of {self.max_body_bytes} bytes.")
