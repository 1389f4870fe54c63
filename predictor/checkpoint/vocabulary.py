"""How many tokens a model has a number for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the process that answers requests imports this module, and no torch
    from transformers import PreTrainedConfig


def vocabulary_of(config: PreTrainedConfig) -> int:
    """Return the number of tokens of a model's text part.

    Models without a vocabulary, such as CANINE, take the characters of Unicode by their numbers.
    """
    text: Any = config.get_text_config()
    return int(getattr(text, "vocab_size", None) or sys.maxunicode + 1)
