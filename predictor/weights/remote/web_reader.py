"""Reads ranges of files over HTTP, for the hub and for web servers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from predictor.errors import CheckpointError, HubUnreachable
from predictor.weights.remote.source import RateLimited, RemoteFile, changed

_CHUNK = 1024**2
"""Bytes that are handed on at a time."""

SECONDS_TO_READ = 30.0
"""Seconds to connect, and between two pieces of an answer."""

_OUTAGES = (408, 425, 429)
"""Statuses below 500 that say that the server cannot answer now."""

_WAIT = re.compile(r"(?:.*;\s*t=)?(\d+)(?:;.*)?")
"""Seconds in the header Retry-After, or in the hub's RateLimit."""

_RANGE = re.compile(r"bytes \d+-\d+/(\d+)")


def stream_range(
    client: Any,
    url: str,
    file: RemoteFile,
    begin: int,
    end: int,
    *,
    source: str,
    headers: Mapping[str, str],
    checks_etag: bool,
    on_redirect: Callable[[str], None] = lambda _: None,
) -> Iterator[bytes]:
    """Yield the bytes of a file from an offset up to another one.

    Args:
        client: A client of httpx or httpx2.
        url: The file's URL.
        file: The file as it was listed.
        begin: The offset of the first byte.
        end: The offset behind the last byte.
        source: The name of the source, without secrets.
        headers: Further headers of the request.
        checks_etag: Whether the server that sends the file is the one that listed it.
        on_redirect: Called with the URL that the file is sent from, if it is another one.

    Raises:
        HubUnreachable: The server cannot answer now.
        CheckpointError: It denies access, or knows no ranges.
        LoadFailed: It has another file.
    """
    asks = {**headers, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    seconds = SECONDS_TO_READ
    with client.stream(
        "GET", url, headers=asks, follow_redirects=True, timeout=seconds
    ) as response:
        refuse_status(response, f"{file.name} of {source}")
        if response.status_code != 206:
            raise without_ranges(source, file.name)
        if total_size(response) != file.size:
            raise changed(source, file)
        if checks_etag and file.etag is not None and version_of(response) != file.etag:
            raise changed(source, file)
        if response.history:
            on_redirect(str(response.url))
        yield from response.iter_bytes(_CHUNK)


def total_size(response: Any) -> int | None:
    """Return the bytes of the whole file of which a response has a range; None if it is unknown."""
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    return None if match is None else int(match[1])


def without_ranges(source: str, name: str) -> CheckpointError:
    """Return the error of a server that sends a file as a whole only."""
    return CheckpointError(
        f"{source} sends {name} as a whole only; the server must support ranges (status 206)."
    )


def version_of(response: Any) -> str | None:
    """Return what a server says to tell versions of a file apart; None if it says nothing."""
    version: str | None = response.headers.get("etag") or response.headers.get("last-modified")
    return version


def refuse_status(response: Any, what: str) -> None:
    """Return if the status of a response is that of an answer with content.

    Raises:
        RateLimited: The server states when it answers again.
        HubUnreachable: The server cannot answer now.
        CheckpointError: It has no such file, or denies access.
    """
    status = response.status_code
    if status in (401, 403, 404):
        raise CheckpointError(f"There is no {what}, or access to it is denied (status {status}).")
    headers = response.headers
    wait = _WAIT.fullmatch(headers.get("retry-after") or headers.get("ratelimit") or "")
    if status in _OUTAGES or status >= 500:
        if wait is not None:
            raise RateLimited(f"status {status}", int(wait[1]))
        raise HubUnreachable(f"status {status}")
    if status >= 300:
        raise CheckpointError(f"{what} cannot be fetched: status {status}.")
