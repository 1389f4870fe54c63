"""API keys: a request needs one of them, unless it is a probe or collects metrics.

Keys are compared as digests, all of them for each request, so that the time tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

from starlette.types import Scope

from predictor.errors import Unauthorized
from predictor.protocol.http.error_forms import is_anthropics

_OPEN = re.compile(
    r"/|/health|/ping|/metrics|/v2/health/(live|ready)|/v1/models/[^/:]+"
    r"|/v2/models/[^/]+(/versions/[^/]+)?/ready"
    r"|/ui/(progress|\w+\.js|\w+\.css|icon\.svg)"
)
"""Paths that kubelets, load balancers and Prometheus ask, which have no key, and the files of the
page in the browser, which has none until its user types one."""


_ANTHROPICS_KEY = b"x-api-key"


class ApiKeys:
    """The keys of a server; without any, every request may pass."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Create them."""
        self._digests = [_digest(key) for key in keys]

    @property
    def are_needed(self) -> bool:
        """Whether a request needs one."""
        return bool(self._digests)

    def check(self, authorization: str) -> None:
        """Return if an ``Authorization`` header has one of the keys, or none is needed.

        Raises:
            Unauthorized: It has not.
        """
        if not self._digests:
            return
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.strip())
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise Unauthorized("The request has no valid API key (Authorization: Bearer KEY).")

    def check_request(self, scope: Scope) -> None:
        """Return if an HTTP request may pass; raises the errors of `check`."""
        if scope["method"] in ("GET", "HEAD") and _OPEN.fullmatch(scope["path"]):
            return
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.check(headers.get(b"authorization", b"").decode("latin-1"))


def with_bearer(scope: Scope) -> Scope:
    """Return a request of Anthropic's API with its key where those of others are.

    Anthropic's clients send it as ``x-api-key``.
    """
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    key = headers.get(_ANTHROPICS_KEY)
    if key is None or b"authorization" in headers or not is_anthropics(scope["path"]):
        return scope
    bearer = (b"authorization", b"Bearer " + key)
    return {**scope, "headers": [*scope["headers"], bearer]}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
