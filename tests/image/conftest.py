"""The image, built once for all tests of it by the README's command.

Where no Docker daemon answers these tests are skipped, or fail if REQUIRE_DOCKER=1.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.image.containers import DOCKER, make_image
from tests.skips import skip_or_fail
from tests.test_readme import ROOT

TAG = "accelerate-predictor:tests"
BASE = "python:3.11-slim-bookworm"
STAND_IN = ROOT.parent / "shared" / "docker" / "offline-base-image"
"""Makes something like the base image where no registry can be reached; it need not be there."""


def answers(*words: str) -> bool:
    """Whether Docker's command is there and does this."""
    try:
        return subprocess.run([DOCKER, *words], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def image() -> str:
    """The image's name, after `make image`."""
    if not answers("info"):
        skip_or_fail("no Docker daemon answers", "REQUIRE_DOCKER")
    if not answers("image", "inspect", BASE) and STAND_IN.exists():
        subprocess.run([STAND_IN, BASE], check=True)
    make_image(TAG)
    return TAG
