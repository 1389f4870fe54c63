"""The settings that bound what clients may do to the server, whatever the model is."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from predictor.settings_types import Bytes

DECODED_BYTES = 20
"""Bytes of main memory for each byte for which a body counts, at the worst: 8 that are decoded,
copies on the way to who decodes it, and holes that they leave. Bodies that used all bounds to the
full took 18 (`tests/server/test_memory_limit.py`)."""

TLS_BYTES = 160 * 1024
"""Bytes of memory that a connection takes besides what it takes without TLS."""

GRAMMAR_BYTES = 48 * 1024**2
"""The default of `grammar_memory`."""


class LimitSettings(BaseSettings):
    """Bounds of connections and of what arrives on them."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    max_connections: int = Field(1024, ge=16)
    """Most open REST connections. For one more, the connection that has waited longest for its
    client is closed: an idle one, or one whose headers do not arrive. So probes are always
    answered. Each connection takes some 20 KiB, and a file of the process. With TLS it takes
    160 KiB more, which are reserved."""

    max_header_size: Bytes = Field(32 * 1024, ge=1024)
    """Most bytes of a request line and its headers (431, 414). Gateways add some hundred bytes and
    tokens of users a few KiB; nginx and Envoy accept about as much."""

    max_header_count: int = Field(100, ge=8)
    """Most headers of a request (431). Envoy and Apache have the same bound."""

    max_bytes_in_flight: Bytes = 10 * 1024**2
    """Most bytes of the bodies of all requests that run or wait, before one more is refused (429,
    RESOURCE_EXHAUSTED). A byte takes up to 20 bytes until it is decoded, which the plan reserves.
    Numbers, lists, objects and short texts take more than their characters, and count for more:
    each `,` for 4 bytes more, `:` for 5, `"` for 3, `[` for 11 and `{` for 13. It is at least 1.25
    times `max_body_size`."""

    max_sequences_in_flight: int = Field(8192, ge=1)
    """Most prompts and texts of all requests that run or wait, before a request with more is
    refused. Each takes up to some 4 KiB besides its tokens. A request that is alone is always
    taken."""

    max_tokens_in_flight: int = Field(2 * 1024**2, ge=1)
    """Most tokens of all requests that run or wait, before a request with more is refused. They are
    counted before texts are tokenised, so a character counts as a token. A token takes up to 36
    bytes. The default is a batch of 64 English prompts of 8192 tokens. With log probabilities a
    token of a prompt counts for 17, and for 10 more with each alternative; then a request that has
    more tokens is refused (400) even if it is alone."""

    max_grammar_size: Bytes = Field(64 * 1024, ge=1)
    """Most bytes of a JSON schema, regular expression or grammar that a reply must follow (400). At
    the default one takes less than a second to compile, in threads that nothing else waits for. The
    schemas of a few dozen tools have that size together."""

    grammar_memory: Bytes = GRAMMAR_BYTES
    """Most bytes of the compiled grammars that replies follow; while there are as many, further
    ones wait. One takes 1 MiB and 224 bytes for each byte of its text, and 16 KiB more for each
    repetition that it counts, such as `maxLength`, up to 20 MiB. The plan reserves them. 0 refuses
    grammars."""

    client_timeout: float = Field(20.0, gt=0, allow_inf_nan=False)
    """Seconds for the headers of a request to arrive, for its body to arrive (longer at
    `min_body_rate`), and for a client that stops reading to read on. Then it is cut off, with 408
    where a status can be sent. Apache allows as many."""

    min_body_rate: Bytes = Field(16 * 1024, ge=1)
    """Bytes per second at which a body may take longer than `client_timeout`. At
    this rate a body of 1 MiB arrives within 84 s, for which it is held in memory."""
