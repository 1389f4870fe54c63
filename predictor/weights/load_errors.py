"""The errors of loading: those of volumes and GPUs, in sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from predictor.errors import LoadFailed, reason_of


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise errors of volumes and GPUs as `LoadFailed`."""
    try:
        yield
    except OSError as error:
        raise LoadFailed(f"The weights cannot be read: {reason_of(error)}") from error
    except torch.OutOfMemoryError as error:
        raise LoadFailed(f"A GPU has less memory than was planned: {reason_of(error)}") from error
