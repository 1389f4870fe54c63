"""The settings of generation: its defaults, prefixes that are shared, and drafts."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from predictor.settings_types import JsonObject


class GenerationSettings(BaseSettings):
    """What replies are like, what need not be computed, and what is computed ahead."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    prefix_cache: bool = True
    """Whether prompts that begin alike share what is computed of their prefix, while the KV cache
    has room. Models with layers that keep a window alone share nothing."""

    max_prefill_chunk: int | None = Field(None, ge=1)
    """Most prompt tokens in one forward pass of an offloaded model, where each pass reads the
    weights again. Above `prefill_chunk`, the plan has memory for as many as leave the rest as it
    is, and as many are computed as pay by what was measured at the start: eight times what a pass
    over the weights costs. Models that keep a state keep to `prefill_chunk`. Default: 8192, a
    prompt of the default of `max_model_len`; but `prefill_chunk` where that is set."""

    prefill_target: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Seconds that a step should take at most while somebody is in the middle of a reply, whose
    next token waits for the prompts in it. The chunks of prompts are as small as that needs, but
    take no less than a pass over the weights. Readers notice a pause of more than a second."""

    prompt_lookup_num_tokens: int = Field(15, ge=0, le=63)
    """Most draft tokens of one sequence in a forward pass: what followed the same tokens before in
    the prompt or the reply, and what a grammar forces. 0 turns drafts off. They change no reply,
    and only as many are computed as save time: fewer as more sequences run, none if the text never
    repeats. 15 and the last known token make 16, two blocks of a matrix product."""

    override_generation_config: JsonObject = Field(default_factory=dict)
    """Defaults of requests in place of those in the model's `generation_config.json`, such as
    `{"max_new_tokens": 50, "temperature": 0.7}`. vLLM's flag of this name sets it too."""

    draft_model_dir: str | None = Field(None, min_length=1)
    """The directory of a draft model, or its repository on the hub as `owner/name`: a small model
    with the same tokenizer, which stays in memory. It drafts where lookup and grammar have nothing.
    Its weights and its KV cache are planned, and take memory that weights of the model lack."""

    draft_model_num_tokens: int = Field(7, ge=1, le=63)
    """Most tokens that the draft model drafts of one sequence in a forward pass. Each takes a
    forward pass of the draft model, so as few are drafted as its drafts are wrong. 7 and the last
    known token make 8, a block of a matrix product."""

    def most_draft_tokens(self) -> int:
        """Return the most draft tokens of one sequence in a forward pass, wherever from."""
        if self.draft_model_dir is None:
            return self.prompt_lookup_num_tokens
        return max(self.prompt_lookup_num_tokens, self.draft_model_num_tokens)

    def draft_positions(self, task: str) -> int:
        """Return how many tokens of a sequence have logits in a forward pass; 0 without drafts."""
        return 1 + self.most_draft_tokens() if task == "text_generation" else 0
