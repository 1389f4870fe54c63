"""The socket that the REST server listens on, and its address as a URL."""

from __future__ import annotations

import socket

from predictor.errors import ConfigurationError

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to connect to in their place


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        ConfigurationError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is named; else each response waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"The REST server cannot listen on {host}:{port}: {error.strerror}."
        ) from None
    return listener


def url_of(listener: socket.socket, *, tls: bool, for_clients: bool = False) -> str:
    """Return the URL of a listening socket.

    Args:
        listener: The socket.
        tls: Whether it is HTTPS.
        for_clients: Whether to name an address that clients on this machine can connect to, if the
            socket listens on all of them.
    """
    host, port = listener.getsockname()[:2]
    if for_clients:
        host = _ANY.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"
