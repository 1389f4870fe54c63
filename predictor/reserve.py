"""The bytes of main memory that are kept for what requests take, at the worst."""

from __future__ import annotations

from predictor.engine.generation.grammar_memory import largest_weight
from predictor.settings import Settings
from predictor.settings_limits import DECODED_BYTES, TLS_BYTES

_BYTES_PER_TOKEN_ID = 700
"""Bytes of the vocabulary for grammars, for each token id: 500 in the process that follows them,
and 200 in the one that checks them."""


def planned_reserve(settings: Settings, *, vocabulary: int) -> int:
    """Return the bytes that are never planned for anything else.

    Args:
        settings: The settings, whose limits bound what requests take.
        vocabulary: Token ids of a model whose replies may follow grammars; 0 for others.
    """
    bodies = DECODED_BYTES * settings.admission_limits().body_bytes
    if settings.batch_dir is not None:
        bodies *= 2
    tls = 0 if settings.ssl_certfile is None else TLS_BYTES * settings.max_connections
    return max(settings.memory_reserve, bodies) + tls + _grammars(settings, vocabulary)


def _grammars(settings: Settings, vocabulary: int) -> int:
    if not (vocabulary and settings.grammar_memory):
        return 0
    largest = largest_weight(settings.max_grammar_size)
    followed = max(settings.grammar_memory, largest)
    return followed + largest + _BYTES_PER_TOKEN_ID * vocabulary
