"""The memory that is kept for requests."""

from __future__ import annotations

from typing import Any

import pytest

from predictor.reserve import planned_reserve
from predictor.settings import read_settings

MIB = 1024**2


def reserve(vocabulary: int = 0, **flags: Any) -> int:
    settings = read_settings({"model_dir": "/nowhere", **flags}, environ={})
    return planned_reserve(settings, vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("flags", "mebibytes"),
    [
        ({}, 200),
        ({"memory_reserve": "300Mi"}, 300),
        ({"max_bytes_in_flight": "16Mi"}, 320),
        ({"max_body_size": "32Mi"}, 800),
        ({"max_bytes_in_flight": "1Mi", "max_body_size": "1Mi"}, 128),
        ({"max_bytes_in_flight": "1Mi", "max_body_size": "1Mi", "memory_reserve": "1Mi"}, 25),
        ({"batch_dir": "/nowhere"}, 400),
        ({"ssl_certfile": "/nowhere", "ssl_keyfile": "/nowhere"}, 200 + 160),
    ],
)
def test_the_bodies_that_may_be_in_flight_at_one_time_are_reserved(
    flags: dict[str, str], mebibytes: int
) -> None:
    assert reserve(**flags) == mebibytes * MIB


def test_models_that_generate_have_grammars_and_their_vocabulary_beside_it() -> None:
    largest = 10_000 * 2048 + 224 * 80 * 1024  # bytes of the one that is checked
    assert reserve(32_000) == 200 * MIB + 48 * MIB + largest + 32_000 * 700
    assert reserve(32_000, grammar_memory="1Mi") == 200 * MIB + 2 * largest + 32_000 * 700
    assert reserve(32_000, grammar_memory="0") == 200 * MIB
