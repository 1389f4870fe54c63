"""The ways to read V1 and V2 requests that leave something open, and to answer them.

One is our own, and one answers encoder tasks as KServe's Hugging Face server. The third is that of
TorchServe's Accelerate handler for large models, whose clients send nothing but the prompt. The
handler's mistakes are not repeated. It dropped the attention mask and padded every prompt to
``max_length``: replies to shorter prompts were right all the same for BLOOM, whose padding is
recognised, and wrong for a tokenizer that pads with its end token. It also logged prompts and
replies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from predictor.protocol.kserve_spec import with_kserve_output
from predictor.settings import Settings
from predictor.tasks.generation_spec import GenerationSpec
from predictor.tasks.request import DEFAULT_PARAMETERS, GenerationParameters
from predictor.tasks.task import TaskSpec

Predictions = Literal["objects", "texts", "kserve"]


@dataclass(frozen=True, slots=True)
class ResponseStyle:
    """How open requests are read and answered.

    Attributes:
        defaults: The parameters of a prompt where a request does not specify them.
        predictions: The form of V1's predictions: objects, strings for completions, or those of
            KServe's Hugging Face server, of which V2's output is then, too.
    """

    defaults: GenerationParameters
    predictions: Predictions = "objects"

    def applied_to(self, spec: TaskSpec) -> TaskSpec:
        """Return a task's specification in this style, which only V1 and V2 use."""
        if isinstance(spec, GenerationSpec):
            return replace(spec, defaults=self.defaults)
        return with_kserve_output(spec) if self.predictions == "kserve" else spec


OUR_STYLE = ResponseStyle(DEFAULT_PARAMETERS)


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
    return ResponseStyle(defaults, "texts")


def style_of(settings: Settings) -> ResponseStyle:
    """Return TorchServe's style if it is set; `Settings` makes sure of `max_length` then.

    KServe's is that of encoder tasks, and TorchServe's that of generation.
    """
    if settings.kserve_semantics:
        return ResponseStyle(DEFAULT_PARAMETERS, "kserve")
    if settings.torchserve_semantics and settings.max_length is not None:
        return handler_style(settings.max_length)
    return OUR_STYLE
