"""What V1 and V2 requests mean where they leave something open, and how V1 answers.

Two styles: our own, and that of TorchServe's Accelerate handler for large models, whose clients say
nothing but the prompt. What it did by mistake is not done: it dropped the attention mask and padded
every prompt to ``max_length`` (its replies to shorter prompts were right all the same for BLOOM,
whose padding is recognised, and wrong for a tokenizer that pads with its end token), and it wrote
prompts and replies to the log.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictor.tasks.request import UNSAID, GenerationParameters


@dataclass(frozen=True, slots=True)
class ResponseStyle:
    """A way to understand requests.

    Attributes:
        unsaid: The parameters of a prompt where a request does not say them.
        plain: Whether V1's predictions are strings and not objects.
    """

    unsaid: GenerationParameters
    plain: bool


OUR_STYLE = ResponseStyle(UNSAID, plain=False)


def handler_style(max_length: int) -> ResponseStyle:
    """Returns the style of TorchServe's handler (``custom_handler.py``, ``inference``).

    Args:
        max_length: Tokens that a prompt is cut to, and most tokens of a reply.
    """
    unsaid = GenerationParameters(
        temperature=1.0,
        top_p=0.95,
        top_k=60,
        return_full_text=True,
        default_new_tokens=max_length,
        prompt_limit=max_length,
    )
    return ResponseStyle(unsaid, plain=True)
