"""The settings of conversations: how messages are encoded, and how replies are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings, SettingsConfigDict

_SAME_REASONING = {
    **dict.fromkeys(("holo2", "kimi_k2", "nemotron_v3", "olmo3", "step3p5"), "think"),
    **dict.fromkeys(("identity", "minimax_m2_append_think"), "none"),
    "openai_gptoss": "auto",
}
"""Further names of vLLM's, of parsers that do the same."""

_CALLS = Literal[
    "auto",
    "none",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "gemma4",
    "glm45",
    "glm47",
    "gpt_oss",
    "hermes",
    "llama3_json",
    "llama4_json",
    "mistral",
    "mistral_list",
    "openai",
    "qwen",
    "qwen3_coder",
    "qwen3_xml",
]
_REASONING = Literal[
    "auto",
    "none",
    "deepseek_r1",
    "deepseek_v3",
    "gemma4",
    "glm45",
    "hunyuan_a13b",
    "kimi",
    "minimax_m2",
    "mistral",
    "qwen3",
    "seed_oss",
    "step3",
    "think",
]


def _one_of(choices: Any, same: Mapping[str, str]) -> Callable[[Any], Any]:
    """Return a validator that says of another parser that none is needed."""

    def check(value: Any) -> Any:
        name = same.get(str(value), value)
        if name not in get_args(choices):
            raise ValueError(
                f"must be one of {', '.join(get_args(choices))}; without it, the model's own "
                "format is detected"
            )
        return name

    return check


CallParser = Annotated[_CALLS, BeforeValidator(_one_of(_CALLS, {}))]
ReasoningParser = Annotated[_REASONING, BeforeValidator(_one_of(_REASONING, _SAME_REASONING))]


class ChatSettings(BaseSettings):
    """How the messages of a chat are encoded, and how its replies are read."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    tool_call_parser: CallParser = "auto"
    """How the model writes calls of functions, by vLLM's names. `auto` takes the tokenizer's own
    response template, or else what the chat template and the special tokens show; `none` leaves
    calls in the text."""

    reasoning_parser: ReasoningParser = "auto"
    """How the model marks its reasoning, by vLLM's names. `think` is `<think>` and `</think>`.
    `auto` finds out as `tool_call_parser` does; `none` leaves reasoning in the text."""

    split_special_tokens: bool = False
    """Whether the texts of control tokens in messages are encoded as text, but for those of
    `system`. Else they are control tokens, as in transformers and vLLM: whoever writes a message
    can end it and begin another one."""
