"""The source that a `model_uri` names."""

from __future__ import annotations

from predictor.weights.remote.s3_source import S3Source
from predictor.weights.remote.source import Source
from predictor.weights.remote.web_source import WebSource


def source_of(uri: str) -> Source:
    """Return the source of a valid `model_uri`, which is not read yet.

    Raises:
        ConfigurationError: The library that it needs is not installed, or it names no bucket.
    """
    return S3Source(uri) if uri.startswith("s3://") else WebSource(uri)
