"""The settings of what generation saves: prefixes that are shared, and drafts."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GenerationSettings(BaseSettings):
    """What need not be computed, and what is computed ahead."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    prefix_cache: bool = True
    """Whether prompts that begin alike share what is computed of their prefix, while the KV cache
    has room. Models that keep more than keys and values of whole sequences share nothing."""

    prompt_lookup_num_tokens: int = Field(15, ge=0, le=63)
    """Most draft tokens of one sequence in a forward pass: what followed the same tokens before in
    the prompt or the reply, and what a grammar forces. 0 turns drafts off. They change no reply,
    and only as many are computed as save time: fewer as more sequences run, none if the text never
    repeats. 15 and the last known token make 16, two blocks of a matrix product."""

    def draft_positions(self, task: str) -> int:
        """Return how many tokens of a sequence have logits in a forward pass; 0 without drafts."""
        return 1 + self.prompt_lookup_num_tokens if task == "text_generation" else 0
