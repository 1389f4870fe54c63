"""Made-up surroundings for checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from predictor.doctor.check import Surroundings
from predictor.settings import Settings, read_settings
from tests.pod.conftest import api_server, host
from tests.server.conftest import served

__all__ = ["api_server", "host", "served"]

Surround = Callable[..., Surroundings]


@pytest.fixture
def surround(tmp_path: Path) -> Surround:
    """Returns surroundings without a cluster and without GPUs, but for what is given."""

    def make(**others: Any) -> Surroundings:
        return Surroundings(**{"environ": {}, "accelerators": tuple, **others})

    return make


def settings(**flags: Any) -> Settings:
    return read_settings({name: str(value) for name, value in flags.items()}, environ={})
