"""The two ways to read V1 and V2 requests that leave something open, and to answer them in V1.

One is our own. The other is that of TorchServe's Accelerate handler for large models, whose clients
send nothing but the prompt. The handler's mistakes are not repeated. It dropped the attention mask
and padded every prompt to ``max_length``: replies to shorter prompts were right all the same for
BLOOM, whose padding is recognised, and wrong for a tokenizer that pads with its end token. It also
logged prompts and replies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from predictor.settings import Settings
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import DEFAULT_PARAMETERS, GenerationParameters
from predictor.tasks.task import TaskSpec


@dataclass(frozen=True, slots=True)
class ResponseStyle:
    """How open requests are read and answered.

    Attributes:
        defaults: The parameters of a prompt where a request does not specify them.
        text_only: Whether V1's predictions for completions are strings and not objects.
    """

    defaults: GenerationParameters
    text_only: bool

    def applied_to(self, spec: TaskSpec) -> TaskSpec:
        """Return a task's specification with the style's defaults, which only V1 and V2 use."""
        return replace(spec, defaults=self.defaults) if isinstance(spec, GenerationSpec) else spec


OUR_STYLE = ResponseStyle(DEFAULT_PARAMETERS, text_only=False)


def handler_style(max_length: int) -> ResponseStyle:
    """Return the style of TorchServe's handler (``custom_handler.py``, ``inference``).

    Args:
        max_length: Tokens to which a prompt is cut, and most tokens of a reply.
    """
    defaults = GenerationParameters(
        temperature=1.0,
        top_p=0.95,
        top_k=60,
        return_full_text=True,
        default_new_tokens=max_length,
        prompt_limit=max_length,
    )
    return ResponseStyle(defaults, text_only=True)


def style_of(settings: Settings) -> ResponseStyle:
    """Return TorchServe's style if it is set; `Settings` makes sure of `max_length` then."""
    if settings.torchserve_semantics and settings.max_length is not None:
        return handler_style(settings.max_length)
    return OUR_STYLE
