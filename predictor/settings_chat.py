"""The settings of conversations: how messages are encoded, and how replies are read."""

from __future__ import annotations

from typing import Literal

from pydantic_settings import BaseSettings, SettingsConfigDict


class ChatSettings(BaseSettings):
    """How the messages of a chat are encoded, and how its replies are read."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    tool_call_parser: Literal[
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
    ] = "auto"
    """How the model writes calls of functions, by vLLM's names. `auto` takes the tokenizer's own
    response template, or else what the chat template and the special tokens show; `none` leaves
    calls in the text."""

    reasoning_parser: Literal[
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
    ] = "auto"
    """How the model marks its reasoning, by vLLM's names. `think` is `<think>` and `</think>`.
    `auto` finds out as `tool_call_parser` does; `none` leaves reasoning in the text."""

    split_special_tokens: bool = False
    """Whether the texts of control tokens in messages are encoded as text, but for those of
    `system`. Else they are control tokens, as in transformers and vLLM: whoever writes a message
    can end it and begin another one."""
