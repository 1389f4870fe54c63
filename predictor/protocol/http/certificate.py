"""The certificate of REST and gRPC, whose files may be renewed while they serve.

Each handshake of REST looks whether the files have changed; gRPC reads them at the start. The SDK's
own watcher follows a Secret's file to its first renewal only: each renewal replaces the folder that
the mounted link points to.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from predictor.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """A certificate chain and its private key.

    Attributes:
        chain: The chain, as PEM.
        key: The key, as PEM.
        context: Serves TLS with both.
    """

    chain: bytes
    key: bytes
    context: ssl.SSLContext


class Certificate:
    """The files of a certificate chain and its private key, and the last pair that fits."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Read the files.

        Args:
            chain: The file of the chain, as PEM.
            key: The file of the key, as PEM and without a passphrase.

        Raises:
            ConfigurationError: A file cannot be read, or the pair does not fit.
        """
        self._chain, self._key = chain, key
        self._lock = threading.Lock()
        self._seen = self._stamps()
        try:
            self._pair = self._read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(self._fault(error)) from None

    def current(self) -> CertificatePair:
        """Return the newest pair that fits. Any thread may call this."""
        with self._lock:
            stamps = self._stamps()
            if stamps != self._seen:
                self._seen = stamps
                try:
                    self._pair = self._read()
                    logger.info("The certificate %s is renewed", self._chain)
                except (OSError, ValueError) as error:
                    logger.warning("%s The one before it stays in use.", self._fault(error))
            return self._pair

    def server_context(self) -> ssl.SSLContext:
        """Return a context whose every handshake has the newest pair."""
        context = self.current().context

        def renew(connection: ssl.SSLSocket | ssl.SSLObject, *_: object) -> None:
            connection.context = self.current().context

        context.sni_callback = renew
        return context

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        """Return what tells the files from others; nothing if one cannot be seen."""
        with contextlib.suppress(OSError):
            stats = [path.stat() for path in (self._chain, self._key)]
            return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)
        return ()

    def _read(self) -> CertificatePair:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._chain, self._key, password=_no_passphrase)
        return CertificatePair(self._chain.read_bytes(), self._key.read_bytes(), context)

    def _fault(self, error: Exception) -> str:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        return f"The certificate {self._chain} with the key {self._key} cannot be used: {reason}."


def _no_passphrase() -> str:
    """Refuse to ask for a passphrase at the terminal, as OpenSSL would."""
    raise ValueError("the key has a passphrase")
