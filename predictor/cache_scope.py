"""The scope of a request in the prefix cache: requests of different scopes share nothing.

How long a prompt takes tells a caller whether its prefix is cached, and so what others have sent
(CVE-2025-46570). A gateway that knows who calls says so in a header, which it sets or overwrites
in every request. The scope is the digest of that header. A client cannot choose it: what it asks
for itself (vLLM's ``cache_salt``) only makes the scope narrower.

The scope is a context variable, which the one way into each server sets. So no route can forget to
pass it on. Work that goes on after its request, a batch, keeps the scope and runs within it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_current: ContextVar[bytes] = ContextVar("cache_scope", default=b"")


@dataclass(frozen=True, slots=True)
class ScopeHeader:
    """The header whose value is the scope of a request.

    Attributes:
        name: Its name; None if all requests are of one scope.
    """

    name: str | None = None

    @contextmanager
    def applied(self, headers: Iterable[tuple[str, str]]) -> Iterator[None]:
        """Let the requests that are prepared in the context be of the scope in their headers.

        Args:
            headers: All headers of a request. One that comes twice narrows the scope.
        """
        token = _current.set(self._scope(headers))
        try:
            yield
        finally:
            _current.reset(token)

    def _scope(self, headers: Iterable[tuple[str, str]]) -> bytes:
        if self.name is None:
            return b""
        values = [value for name, value in headers if name.lower() == self.name.lower()]
        # Without the header nobody knows who calls, so the request shares nothing.
        return _digest("header", *values) if values else secrets.token_bytes(32)


ONE_SCOPE = ScopeHeader()
"""No header: all requests are of one scope."""


@contextmanager
def within_scope(scope: bytes) -> Iterator[None]:
    """Let the requests that are prepared in the context be of the scope of an earlier one.

    Args:
        scope: What `current_scope` returned while that one was handled.
    """
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)


def current_scope(salt: str = "") -> bytes:
    """Return the scope of the request that is handled.

    Args:
        salt: What a client asks for to make the scope narrower; empty for nothing.
    """
    scope = _current.get()
    return _digest("salt", scope.hex(), salt) if salt else scope


def _digest(*values: str) -> bytes:
    digest = hashlib.sha256()
    for value in values:
        octets = value.encode(errors="surrogatepass")
        digest.update(len(octets).to_bytes(8, "big") + octets)
    return digest.digest()
