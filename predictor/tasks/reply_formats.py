"""How models write calls of functions and their reasoning into a reply, by the names that vLLM has.

Each format is a field of a response template of transformers (``utils/chat_parsing`` of 5.23): what
opens and closes it, and how its text is parsed. A tokenizer that has such a template itself needs
none of these.

The patterns take linear time on any reply: none begins with a repetition or with what may be
absent, and none looks through the rest of the reply from each of many places. `MessageParser` drops
the spaces around a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_CALL = {"repeats": True, "content": "json", "content_args": {"allow_non_json": True}}
_NAMED = {
    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
}
_NAME = r"(?P<name>[\w.:/-]+)"


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls are written.

    Attributes:
        calls: The field ``tool_calls`` of a response template.
        marks: Texts of which a chat template, or the names of special tokens, have one if the model
            writes calls so.
        others: Further fields. With one for content, the format marks all parts of a message.
    """

    calls: Mapping[str, Any]
    marks: tuple[str, ...]
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def marks_all(self) -> bool:
        """Whether content and reasoning have marks too, so that no reply is without."""
        return "content" in self.others


_HARMONY = CallFormat(
    {
        "open_pattern": (
            r"\bto=(?:functions\.)?"
            rf"{_NAME}(?:<\|channel\|>\w+)?[^<]{{0,64}}(?:<\|constrain\|>[^<]{{0,64}})?<\|message\|>"
        ),
        "close_pattern": r"<\|call\|>|<\|end\|>|<\|return\|>",
        **_CALL,
        **_NAMED,
    },
    ("<|channel|>",),
    {
        "reasoning_content": {
            "open_pattern": r"(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>",
            "close_pattern": r"<\|end\|>|<\|return\|>",
            "repeats": True,
            "join": "\n",
        },
        "content": {
            "open_pattern": (
                r"(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)"
                r"(?:\s*<\|constrain\|>[^<]{0,64})?<\|message\|>"
            ),
            "close_pattern": r"<\|end\|>|<\|return\|>",
            "repeats": True,
            "join": "\n",
        },
    },
)
_QWEN_XML = CallFormat(
    {
        "open_pattern": rf"<(?:tool_call>\s*<)?function={_NAME}>",
        "close_pattern": r"</function>\s*</tool_call>",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {
            "tag_pattern": (
                r"<parameter=(?P<key>[^<>\n]+)>\n?(?P<value>.*?)"
                r"\n?(?:</parameter>|(?=<parameter=))"
            )
        },
        **_NAMED,
    },
    ("<function=",),
)
_GLM = CallFormat(
    {
        "open_pattern": rf"<tool_call>\s*{_NAME}",
        "close": "</tool_call>",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {
            "tag_pattern": (
                r"<arg_key>(?P<key>[^<]*)</arg_key>\s*<arg_value>(?P<value>.*?)"
                r"(?:</arg_value>|(?=<arg_key>))"
            )
        },
        **_NAMED,
    },
    ("<arg_key>",),
)
_GEMMA = CallFormat(
    {
        "open_pattern": rf"<\|tool_call>call:{_NAME}",
        "close": "<tool_call|>",
        **_CALL,
        "content_args": {
            "unquoted_keys": True,
            "string_delims": [['<|"|>', '<|"|>']],
            "allow_non_json": True,
        },
        **_NAMED,
    },
    ("<|tool_call>",),
)
_BAR, _SPACE = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
"""Characters of DeepSeek's special tokens that look like others."""


def _deepseek(name: str) -> str:
    return f"<{_BAR}{name.replace(' ', _SPACE)}{_BAR}>"


_CALL_MARK = f"<{_BAR}tool{_SPACE}call"
_DEEPSEEK = CallFormat(
    {
        "open_pattern": (
            rf"{_CALL_MARK}(?:s{_SPACE}begin{_BAR}>\s*{_CALL_MARK})?{_SPACE}begin{_BAR}>"
            rf"(?:function{_deepseek('tool sep')})?(?!function{_deepseek('tool sep')})"
            rf"{_NAME}(?:{_deepseek('tool sep')}|\n```json\n)"
        ),
        "close_pattern": rf"(?:\n```)?{_deepseek('tool call end')}",
        **_CALL,
        **_NAMED,
    },
    (_deepseek("tool calls begin"),),
    {"after_calls": {"open": _deepseek("tool calls end")}},
)
_DSML = f"{_BAR}DSML{_BAR}"
_DSML_VALUE = rf"(?:[^<]|<(?!/?{_DSML}parameter))*+"
_DSML_TEXT, _DSML_END = 'string="true">', f"</{_DSML}parameter>"
_DEEPSEEK_DSML = CallFormat(
    {
        "open_pattern": (
            rf"<{_DSML}(?:(?:function|tool)_calls>\s*<{_DSML})?"
            rf'invoke\s+name="{_NAME}"\s*>'
        ),
        "close": f"</{_DSML}invoke>",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {
            "tag_pattern": (
                rf'<{_DSML}parameter\s+name="(?P<key>[^"<>]*)"\s+'
                rf'(?:string="false">(?P<value>{_DSML_VALUE}){_DSML_END}'
                rf"|(?P<value>{_DSML_TEXT}{_DSML_VALUE}{_DSML_END}))"
            ),
            "value_parser": {
                "name": "json",
                "args": {"string_delims": [[_DSML_TEXT, _DSML_END]], "allow_non_json": True},
            },
        },
        **_NAMED,
    },
    (_DSML,),
    {
        "after_calls": {
            "open_pattern": rf"(?<=</{_DSML}invoke>\s*)</{_DSML}(?:function|tool)_calls>",
            "close_pattern": "(?=.)",
        }
    },
)
"""DeepSeek's since V3.2. A value says whether it is a text, or else JSON."""
_MISTRAL = CallFormat(
    {
        "open_pattern": rf"\[TOOL_CALLS\]{_NAME}(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{{)",
        "close_pattern": r"(?=\[TOOL_CALLS\])|</s>",
        **_CALL,
        **_NAMED,
    },
    ("[ARGS]",),
)
_MISTRAL_LIST = CallFormat({"open": "[TOOL_CALLS]", "close": "</s>", **_CALL}, ("[TOOL_CALLS]",))
_HERMES = CallFormat({"open": "<tool_call>", "close": "</tool_call>", **_CALL}, ("<tool_call>",))
_LLAMA_JSON = CallFormat(
    {
        "open_pattern": (
            r"(?:\A\s*|<\|python_tag\|>|(?<=\});\s*)"
            r'(?=\{\s*"(?:name|type|function|parameters|arguments)"\s*:)'
        ),
        "close_pattern": r"(?<=\})(?=\s*;\s*\{)|<\|eom_id\|>|<\|eot_id\|>",
        **_CALL,
    },
    ("<|python_tag|>", '{"name": function name, "parameters"', "<|start_header_id|>"),
)

CALL_FORMATS: Mapping[str, CallFormat] = {
    "openai": _HARMONY,
    "qwen3_coder": _QWEN_XML,
    "glm45": _GLM,
    "gemma4": _GEMMA,
    "deepseek_v32": _DEEPSEEK_DSML,
    "deepseek_v3": _DEEPSEEK,
    "mistral": _MISTRAL,
    "mistral_list": _MISTRAL_LIST,
    "hermes": _HERMES,
    "llama3_json": _LLAMA_JSON,
}
"""Formats of calls by name. The first whose marks a model has is its own."""

REASONING_FORMATS: Mapping[str, tuple[str, str]] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "gemma4": ("<|channel>thought\n", "<channel|>"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
    "kimi": ("◁think▷", "◁/think▷"),
}
"""What opens and closes a model's reasoning, by name. The first that a model has is its own."""

LINE_BREAKS = r"/\n{0,2}/"
"""What models write between their reasoning and their reply, as a terminal of a grammar."""

CALL_ALIASES: Mapping[str, str] = {
    "qwen3_xml": "qwen3_coder",
    "glm47": "glm45",
    "deepseek_v31": "deepseek_v3",
    "llama4_json": "llama3_json",
    "qwen": "hermes",
    "gpt_oss": "openai",
}
"""vLLM's other names of the same formats."""

REASONING_ALIASES: Mapping[str, str] = dict.fromkeys(
    ("deepseek_r1", "deepseek_v3", "qwen3", "glm45", "hunyuan_a13b", "step3", "minimax_m2"), "think"
)
"""vLLM's names of parsers of the same reasoning."""


def detect_calls(texts: str) -> CallFormat | None:
    """Return the format of calls of a model; None if it has none of these.

    Args:
        texts: The chat template, and the names of the special tokens.
    """
    formats = CALL_FORMATS.values()
    return next((each for each in formats if any(mark in texts for mark in each.marks)), None)


def detect_reasoning(texts: str) -> tuple[str, str] | None:
    """Return what opens and closes a model's reasoning; None if it does not reason apart."""
    return next((pair for pair in REASONING_FORMATS.values() if pair[0].strip() in texts), None)


def response_template(
    calls: CallFormat | None, reasoning: tuple[str, str] | None
) -> dict[str, Any] | None:
    """Return the response template of a reply; None if all of it is content."""
    fields: dict[str, Any] = {}
    if reasoning is not None and (calls is None or not calls.marks_all):
        fields["reasoning_content"] = {"open": reasoning[0], "close": reasoning[1]}
    if calls is not None:
        fields |= {"tool_calls": calls.calls, **calls.others}
    if not fields:
        return None
    fields.setdefault("content", {"content_args": {"strip": False}})
    return {"start_anchor_pattern": r"\A", "fields": fields}


def harmony_lead(terminal: Callable[[str], str]) -> str:
    """Return what gpt-oss writes before its final text, as a rule of a grammar.

    Args:
        terminal: Returns how a grammar names a mark.
    """
    marks = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")
    channel, message, end, start = map(terminal, marks)
    analysis = f'{channel} "analysis" {message} /(?s:.*)/ {end} {start} "assistant"'
    return f'({analysis})? {channel} "final" {message}'


def marks_of(template: Mapping[str, Any], special_tokens: list[str]) -> frozenset[str]:
    """Return the special tokens that a response template looks for, plain or in a pattern."""
    text = json.dumps(template, ensure_ascii=False).replace("\\\\", "\\")
    return frozenset(token for token in special_tokens if token in text or re.escape(token) in text)
