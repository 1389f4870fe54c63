"""A folder in a bucket of S3, or of a server that speaks its API.

The extra ``s3`` installs the library. It takes its settings from the ``AWS_*`` environment
variables: keys, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, web identities of
service accounts, and ``AWS_SKIP_SIGNATURE=true`` for public buckets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from predictor.errors import CheckpointError, ConfigurationError, HubUnreachable, reason_of
from predictor.weights.remote.source import Listing, RemoteFile, changed

_SECONDS_TO_CONNECT, _SECONDS_TO_ANSWER = 10, 60
_SECONDS_TO_RETRY = 20
"""Seconds in which the library itself tries a request again."""


class MissingLibrary(ConfigurationError):
    """The library for buckets is not installed."""


class S3Source:
    """The objects of a bucket whose keys begin alike.

    Attributes:
        name: The URI.
        ref: None: a bucket has no branches.
    """

    def __init__(self, uri: str) -> None:
        """Ask nothing yet.

        Raises:
            MissingLibrary: The library is not installed.
            ConfigurationError: The URI names no bucket.
        """
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.name = uri.rstrip("/")
        self.ref: str | None = None
        self._prefix = prefix.rstrip("/")
        if not bucket:
            raise ConfigurationError(f"model_uri: {uri} names no bucket.")
        self._store, self._library = _open(bucket), _library()

    def listing(self) -> Listing:
        """Return the objects below the prefix that a model may have."""
        prefix = f"{self._prefix}/" if self._prefix else ""
        files: list[RemoteFile] = []
        try:
            for page in self._store.list(prefix or None):
                files += [
                    RemoteFile(str(each["path"]).removeprefix(prefix), each["size"], each["e_tag"])
                    for each in page
                ]
        except Exception as error:
            raise self._translate(error, self.name) from None
        if not files:
            raise CheckpointError(f"{self.name} holds no files.")
        return Listing.of(files)

    def close(self) -> None:
        """Do nothing: the library closes its connections itself."""

    def pin(self, revision: str) -> None:
        """Do nothing: the ETag of each file is that which was listed."""

    def read(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of an object, if it still has the listed ETag."""
        key = f"{self._prefix}/{file.name}" if self._prefix else file.name
        options: dict[str, Any] = {"range": (begin, end)}
        if file.etag is not None:
            options["if_match"] = file.etag
        try:
            for chunk in self._library.get(self._store, key, options=options):
                yield bytes(chunk)
        except self._library.exceptions.PreconditionError:
            raise changed(self.name, file) from None
        except Exception as error:
            raise self._translate(error, f"{file.name} of {self.name}") from None

    def _translate(self, error: Exception, what: str) -> Exception:
        """Return our error of the library's, whose message may have a signed URL in it."""
        errors = self._library.exceptions
        denied = (errors.NotFoundError, errors.PermissionDeniedError, errors.UnauthenticatedError)
        if isinstance(error, denied) or "NoSuchBucket" in str(error):
            return CheckpointError(f"There is no {what}, or access to it is denied.")
        if isinstance(error, errors.BaseError):
            return HubUnreachable(f"{what} cannot be read from S3 ({type(error).__name__})")
        return HubUnreachable(reason_of(error, most=120))


def _library() -> Any:
    try:
        import obstore
    except ImportError:
        raise MissingLibrary(
            "model_uri: s3:// needs the package obstore; install accelerate-predictor[s3]."
        ) from None
    return obstore


def _open(bucket: str) -> Any:
    _library()
    from obstore.store import S3Store

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return S3Store(
        bucket,
        client_options={
            "connect_timeout": timedelta(seconds=_SECONDS_TO_CONNECT),
            "timeout": timedelta(seconds=_SECONDS_TO_ANSWER),
            "allow_http": endpoint.startswith("http://"),
        },
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=_SECONDS_TO_RETRY)},
    )
