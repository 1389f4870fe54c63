"""The positions of models with an encoder: those of the source, and those of the reply.

Relative positions, such as T5's, have no limit. Old configs of T5 name the length that the model
was trained with (``n_positions``), which transformers does not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the process that answers requests imports this module, and no torch
    from transformers import PreTrainedConfig

_SHARED = "max_position_embeddings"
_LONGEST_DEFAULT, _DEFAULT = 8192, 2048


@dataclass(frozen=True, slots=True)
class Lengths:
    """The most tokens of a sequence.

    Attributes:
        source: Tokens of a text, of a prompt and its reply, or of an encoder's source.
        reply: Tokens of a decoder, including those that it begins with; None without an encoder.
    """

    source: int
    reply: int | None = None

    @property
    def total(self) -> int:
        """Tokens of a whole sequence."""
        return self.source + (self.reply or 0)


def source_positions(config: PreTrainedConfig) -> int | None:
    """Return the positions of the encoder; None if it has no limit."""
    return _positions(config, "encoder")


def reply_positions(config: PreTrainedConfig) -> int | None:
    """Return the positions of the decoder; None if it has no limit."""
    return _positions(config, "decoder")


def default_length(config: PreTrainedConfig, positions: int | None) -> int:
    """Return the default of a source's or a reply's length: its positions, at most 8192.

    Without a limit, it is the length that the model was trained with, if the config names it.
    """
    trained = getattr(config, "n_positions", None)
    return min(positions or trained or _DEFAULT, _LONGEST_DEFAULT)


def _positions(config: PreTrainedConfig, part: str) -> int | None:
    own: Any = getattr(config, part, None)
    holder = own if hasattr(own, "get_text_config") else config
    holder = holder.get_text_config() if holder is not config else config
    for name in (f"max_{part}_position_embeddings", _SHARED):
        value = getattr(holder, name, None)
        if value and _declares(holder, name):
            return int(value)
    return None


def _declares(config: PreTrainedConfig, name: str) -> bool:
    """Whether a key is one that the model reads, and not only one of its file."""
    kind = type(config)
    return hasattr(kind, name) or name in kind.attribute_map or not _is_of_transformers(kind)


def _is_of_transformers(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")
