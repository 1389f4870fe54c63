"""The one way in which a test says that what it needs is not here."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str, variable: str) -> NoReturn:
    """Skips a test for a reason, or fails it where an environment variable promised otherwise."""
    if os.environ.get(variable) == "1":
        pytest.fail(reason)
    pytest.skip(reason)
