"""The source that a `model_uri` names."""

from __future__ import annotations

from predictor.weights.remote.s3_source import S3Source
from predictor.weights.remote.web_reader import SECONDS_TO_READ
from predictor.weights.remote.web_source import WebSource


def source_of(uri: str, *, seconds: float = SECONDS_TO_READ) -> S3Source | WebSource:
    """Return the source of a valid `model_uri`, which is not read yet.

    Args:
        uri: The URI.
        seconds: Seconds in which a web server has to answer a request of a listing.

    Raises:
        MissingLibrary: The library that it needs is not installed.
        ConfigurationError: It names no bucket.
    """
    return S3Source(uri) if uri.startswith("s3://") else WebSource(uri, seconds=seconds)
