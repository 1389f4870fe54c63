"""Replies as messages: calls of functions and reasoning in the formats that models write."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, get_args
from unittest.mock import Mock

import pytest

from predictor.engine.generation.grammar import Grammars
from predictor.settings_chat import ChatSettings
from predictor.tasks.messages import ChatOptions, MessageForm
from predictor.tasks.reply_formats import (
    CALL_ALIASES,
    CALL_FORMATS,
    REASONING_ALIASES,
    REASONING_FORMATS,
    detect_calls,
)
from predictor.tasks.request import Conversation, ForcedCalls, Grammar, Message
from predictor.tasks.structured_output import GrammarLimits, StructuredOutput, vocabulary_of
from predictor.tasks.tool_calls import CallPart, MessagePart, joined
from tests.checkpoints import byte_tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
SIEGEN = ("get_weather", {"city": "Siegen", "days": 2})
ULM = ("get_weather", {"city": 'a "big" {Ulm}'})


def deepseek(text: str) -> str:
    """Writes DeepSeek's marks with plain characters."""
    return text.replace("|", "\N{FULLWIDTH VERTICAL LINE}").replace(
        "_", "\N{LOWER ONE EIGHTH BLOCK}"
    )


def text_of(call: tuple[str, Any], key: str = "arguments") -> str:
    return json.dumps({"name": call[0], key: call[1]})


def arguments(call: tuple[str, Any]) -> str:
    return json.dumps(call[1])


BEGIN, END = deepseek("<|tool_calls_begin|>"), deepseek("<|tool_calls_end|>")
CALL, SEP, OVER = (deepseek(f"<|tool_{x}|>") for x in ("call_begin", "sep", "call_end"))

DSML = deepseek("|DSML|")


def dsml(text: str) -> str:
    """Writes the marks of DeepSeek V3.2 with plain characters."""
    return text.replace("<|", f"<{DSML}").replace("</|", f"</{DSML}")


REPLIES: dict[str, tuple[str, str, str, list[Any]]] = {
    "hermes": (
        "<tool_call>",
        f"Let me see.\n<tool_call>\n{text_of(SIEGEN)}\n</tool_call>\n"
        f"<tool_call>\n{text_of(ULM)}\n</tool_call>",
        "Let me see.",
        [SIEGEN, ULM],
    ),
    "qwen3_coder": (
        "<tool_call>\n<function=",
        "Hm\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nSiegen\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "Hm",
        [SIEGEN],
    ),
    "glm45": (
        "<tool_call>{name}\n<arg_key>",
        "Hm\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Siegen</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        "Hm",
        [SIEGEN],
    ),
    "llama3_json": ("<|start_header_id|>", text_of(SIEGEN, "parameters"), "", [SIEGEN]),
    "llama3_json of two": (
        "<|python_tag|>",
        f"<|python_tag|>{text_of(SIEGEN, 'parameters')}; {text_of(ULM, 'parameters')}",
        "",
        [SIEGEN, ULM],
    ),
    "mistral_list": (
        "[TOOL_CALLS]",
        f"[TOOL_CALLS] [{text_of(SIEGEN)}, {text_of(ULM)}]",
        "",
        [SIEGEN, ULM],
    ),
    "mistral": (
        "[TOOL_CALLS]name[ARGS]",
        f"Hm[TOOL_CALLS]get_weather[ARGS]{arguments(SIEGEN)}"
        f"[TOOL_CALLS]get_weather{arguments(ULM)}",
        "Hm",
        [SIEGEN, ULM],
    ),
    "deepseek_v3": (
        BEGIN,
        f"Hm{BEGIN}{CALL}function{SEP}get_weather\n```json\n{arguments(SIEGEN)}\n```{OVER}\n"
        f"{CALL}function{SEP}get_weather\n```json\n{arguments(ULM)}\n```{OVER}{END}",
        "Hm",
        [SIEGEN, ULM],
    ),
    "deepseek_v3 of 3.1": (
        BEGIN,
        f"Hm{BEGIN}{CALL}get_weather{SEP}{arguments(SIEGEN)}{OVER}{END}",
        "Hm",
        [SIEGEN],
    ),
    "deepseek_v32": (
        f"{DSML} {BEGIN}",  # its vocabulary has the marks of V3, too
        dsml('Hm\n\n<|function_calls>\n<|invoke name="get_weather">\n')
        + dsml('<|parameter name="city" string="true">Siegen</|parameter>\n')
        + dsml('<|parameter name="days" string="false">2</|parameter>\n</|invoke>\n')
        + dsml('<|invoke name="get_weather">\n<|parameter name="city" string="true">')
        + dsml('a "big" {Ulm}</|parameter>\n</|invoke>\n</|function_calls>'),
        "Hm",
        [SIEGEN, ULM],
    ),
    "deepseek_v32 with values of no schema": (
        DSML,
        dsml('<|tool_calls><|invoke name="get_weather"><|parameter name="a" string="true">2')
        + dsml('</|parameter><|parameter name="b" string="false">[2, "<b>"]</|parameter>')
        + dsml('<|parameter name="c" string="false">none</|parameter></|invoke></|tool_calls>'),
        "",
        [("get_weather", {"a": "2", "b": [2, "<b>"], "c": "none"})],
    ),
    "deepseek_v32 without parameters": (
        DSML,
        dsml('Hm<|function_calls><|invoke name="get_weather"></|invoke></|function_calls> So.'),
        "HmSo.",
        [("get_weather", {})],
    ),
    "openai": (
        "<|channel|>",
        "<|channel|>analysis<|message|>Think<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather <|constrain|>json<|message|>{arguments(SIEGEN)}<|call|>",
        "",
        [SIEGEN],
    ),
    "openai without a call": (
        "<|channel|>",
        "<|channel|>analysis<|message|>Think<|end|><|start|>assistant<|channel|>final<|message|>"
        "Hm<|return|>",
        "Hm",
        [],
    ),
    "openai with odd arguments": (
        "<|channel|>",
        "<|channel|>analysis<|message|>Think<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather<|message|>{text_of(SIEGEN)}<|call|>",
        "",
        [("get_weather", json.loads(text_of(SIEGEN)))],
    ),
    "gemma4": (
        "<|tool_call>",
        '<|tool_call>call:get_weather{city:<|"|>Siegen<|"|>,days:2}<tool_call|>',
        "",
        [SIEGEN],
    ),
}


def test_the_settings_have_the_names_of_all_formats() -> None:
    for setting, names in (
        ("tool_call_parser", {*CALL_FORMATS, *CALL_ALIASES}),
        ("reasoning_parser", {*REASONING_FORMATS, *REASONING_ALIASES}),
    ):
        annotation = ChatSettings.model_fields[setting].annotation
        assert set(get_args(annotation)) == names | {"auto", "none"}


def form(template: str, **names: Any) -> MessageForm:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return MessageForm(tokenizer, ChatOptions(**names))


def conversation(**more: Any) -> Conversation:
    return Conversation((Message("user", "Weather?"),), **{"tools": (WEATHER,), **more})


def parse(
    messages: MessageForm, reply: str, step: int, *, prompt: str = "", **more: Any
) -> tuple[str, str, list[Any]]:
    """Returns content, reasoning and calls of a reply that comes in pieces of some length."""
    reply_form = messages.reply_form(conversation(**more), prompt)
    assert reply_form is not None
    parser = reply_form.new_parser()
    pieces = [reply[n : n + step] for n in range(0, len(reply), step)]
    parts = [parser.feed(piece, is_last=False) for piece in pieces]
    parts.append(parser.feed("", is_last=True))
    calls = joined(call for part in parts for call in part.calls)
    assert len({call.id for call in calls}) == len(calls)
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)
    return (
        "".join(part.content for part in parts),
        "".join(part.reasoning for part in parts),
        [(call.name, json.loads(call.arguments)) for call in calls],
    )


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("name", REPLIES)
def test_calls_are_read_in_the_format_of_the_chat_template(name: str, step: int) -> None:
    template, reply, content, calls = REPLIES[name]
    assert detect_calls(template) is CALL_FORMATS[name.partition(" ")[0]]
    reasoning = "Think" if name.startswith("openai") else ""
    assert parse(form(template), reply, step) == (content, reasoning, calls)


@pytest.mark.parametrize("name", sorted({name.partition(" ")[0] for name in REPLIES}))
@pytest.mark.parametrize("reply", ["Just a text.\n", "{} <b>[1]</b>", '{"a": 1}', ""])
def test_a_reply_without_calls_is_content_as_it_is(name: str, reply: str) -> None:
    if name == "openai":
        return  # all of its messages have marks
    assert parse(form("", tool_call_parser=name), reply, 3) == (reply, "", [])


OTHER = '{"name": "other", "arguments": {}}'


@pytest.mark.parametrize("step", [1, 7, 50_000])
@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("hermes", "<tool_call>no json</tool_call>"),
        ("hermes", '<tool_call>{"name": "a", "argum'),
        ("hermes", "<tool_call>[1, 2]</tool_call>"),
        ("hermes", "The tag <tool_call> is used so, and </tool_call> closes it.\n"),
        ("hermes", f"Hm\n<tool_call>\n{OTHER}\n</tool_call>\nMore"),
        ("hermes", "Write <tool_call> so."),
        ("llama3_json", '{"name": 5}'),
        ("llama3_json", '{"name": "John", "age": 3}\n'),
        ("llama3_json", '{"name": "John", "parameters": {}}'),
        ("mistral", 'The [TOOL_CALLS]other[ARGS]{"a": 1}'),
        ("mistral_list", "[TOOL_CALLS] 5"),
        ("mistral_list", f"[TOOL_CALLS][{OTHER}]"),
        ("qwen3_coder", "A <function=other> is\n</function></tool_call> so."),
        ("glm45", "A <tool_call>other <b> tag</tool_call> is so."),
        ("gemma4", "A <|tool_call>call:other{a:1}<tool_call|> is so."),
        ("deepseek_v3", f"A {BEGIN}{CALL}other{SEP}{{}}{OVER} is so."),
        ("deepseek_v32", dsml('A <|function_calls><|invoke name="other"></|invoke> is so.')),
        ("deepseek_v32", dsml("A <|function_calls> is so, and </|function_calls>.")),
    ],
)
def test_what_is_no_call_stays_content(name: str, reply: str, step: int) -> None:
    assert parse(form("", tool_call_parser=name), reply, step) == (reply, "", [])


def test_a_reply_that_cannot_be_parsed_stays_content() -> None:
    reply = f"So: <tool_call>{'[' * 20_000}</tool_call>"
    assert parse(form("", tool_call_parser="hermes"), reply, 10_000) == (reply, "", [])


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("name", "reply", "content"),
    [
        ("llama3_json", f"{text_of(SIEGEN, 'parameters')} is what I call.", "is what I call."),
        ("hermes", f"<tool_call>{text_of(SIEGEN)}</tool_call>\nSo.", "So."),
        ("hermes", f"<tool_call>{text_of(SIEGEN)}\nSo.</tool_call>", "So."),
        ("mistral_list", f"[TOOL_CALLS][{text_of(SIEGEN)}, {OTHER}]", OTHER),
    ],
)
def test_text_beside_a_call_is_content(name: str, reply: str, content: str, step: int) -> None:
    assert parse(form("", tool_call_parser=name), reply, step) == (content, "", [SIEGEN])


MANY = 20_000
"""As often as a mark stands in a reply, so that a scan from each to the end takes minutes."""


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("qwen3_coder", "<tool_call><function=f>" + "<parameter=a>" * MANY),
        ("qwen3_coder", "<tool_call><function=f>" + "<parameter=" * MANY),
        ("qwen3_coder", "<tool_call>\n" * MANY),
        ("deepseek_v3", BEGIN * MANY),
        ("glm45", "<tool_call>f" + "<arg_key>" * MANY),
        ("glm45", "<tool_call>f" + "<arg_key>a</arg_key>" * MANY),
        ("glm45", "<tool_call>f" + "<arg_key>a</arg_key><arg_value>" * MANY),
        ("deepseek_v32", dsml("<|function_calls>\n") * MANY),
        ("deepseek_v32", dsml('<|invoke name="f"><|invoke') * MANY),
        (
            "deepseek_v32",
            dsml('<|invoke name="f">') + dsml('<|parameter name="a" string="true">') * MANY,
        ),
        ("openai", "to=a " * MANY),
        ("openai", "<|channel|>final" * MANY),
        ("openai", "<|start|>assistant" * MANY),
        ("openai", "to=" + "a" * MANY),
        *((name, " \n" * MANY + "x") for name in CALL_FORMATS),
    ],
)
def test_marks_without_an_end_are_read_once(name: str, reply: str) -> None:
    began = time.process_time()
    parse(form("", tool_call_parser=name), reply, len(reply))
    assert time.process_time() - began < 1


def test_a_parameter_ends_where_the_next_begins() -> None:
    body = "<parameter=city>Ulm\n<parameter=days>2</parameter>"
    reply = f"<tool_call><function=get_weather>{body}</function></tool_call>"
    expected = ("", "", [("get_weather", {"city": "Ulm", "days": 2})])
    assert parse(form("", tool_call_parser="qwen3_coder"), reply, 5) == expected


@pytest.mark.parametrize("step", [1, 5, 10_000])
@pytest.mark.parametrize("name", REASONING_FORMATS)
def test_reasoning_is_apart_from_content(name: str, step: int) -> None:
    opening, closing = REASONING_FORMATS[name]
    reply = f"{opening}\nLet me think.\n{closing}\n\nHello.\n"
    expected = ("Hello.\n", "Let me think.", [])
    assert parse(form(opening), reply, step, tools=()) == expected
    begun = f"user: Hi\n{opening}\n"
    rest = reply.removeprefix(opening)
    assert parse(form(opening), rest, step, prompt=begun, tools=()) == expected
    cut = reply.partition(closing)[0]
    assert parse(form(opening), cut, step, tools=()) == ("", "Let me think.", [])


def test_arguments_are_passed_on_as_they_are_written() -> None:
    reply_form = form("<tool_call>").reply_form(conversation(), "")
    assert reply_form is not None
    parser = reply_form.new_parser()
    written = '<tool_call>{"name": "get_weather", "arguments": {"city": "Sie'
    *_, last = parser.feed(written, is_last=False).calls
    assert (last.index, last.arguments) == (0, '{"city": "Sie')
    rest = parser.feed('gen"}}\n</tool_call>', is_last=False)
    assert [part.arguments for part in rest.calls] == ['gen"}']
    assert parser.feed("", is_last=True).calls == ()


def test_reasoning_goes_before_calls() -> None:
    template, reply, content, calls = REPLIES["hermes"]
    messages = form(f"<think>{template}")
    assert parse(messages, f"<think>\nHm\n</think>\n\n{reply}", 4) == (content, "Hm", calls)


def test_a_reply_that_may_make_one_call_makes_one() -> None:
    template, reply, content, calls = REPLIES["hermes"]
    assert parse(form(template), reply, 4, is_single=True) == (content, "", calls[:1])


def test_without_tools_marks_of_calls_are_text() -> None:
    messages = form("<tool_call>")
    assert messages.reply_form(conversation(tools=()), "") is None
    assert form("no marks").reply_form(conversation(), "") is None
    assert form("<tool_call>", tool_call_parser="none").reply_form(conversation(), "") is None


def test_the_tokenizers_own_response_template_is_used_first() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<tool_call>"
    tokenizer.response_template = {
        "start_anchor": "assistant:",
        "fields": {
            "thinking": {"open": "((", "close": "))"},
            "tool_calls": {"open": "CALL ", "close": ";", "content": "json", "repeats": True},
            "content": {},
        },
    }
    messages = MessageForm(tokenizer, ChatOptions())
    reply = f"Hm)) Yes CALL {text_of(SIEGEN)};"
    prompt = "user: x assistant:(("
    assert parse(messages, reply, 3, prompt=prompt) == ("Yes", "Hm", [SIEGEN])


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_forced_calls_are_all_of_a_reply(step: int) -> None:
    text = json.dumps([{"name": name, "parameters": value} for name, value in (SIEGEN, ULM)])
    any_tool, named = ForcedCalls(), ForcedCalls("get_weather")
    assert parse(form(""), text, step, forced=any_tool) == ("", "", [SIEGEN, ULM])
    assert parse(form(""), arguments(ULM), step, forced=named) == ("", "", [ULM])


FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_forced_calls_come_after_reasoning_that_the_prompt_has_begun(step: int) -> None:
    reply = f"Hm.\n</think>\n\n{arguments(ULM)}"
    named = ForcedCalls("get_weather")
    assert parse(form("<think>"), reply, step, prompt="<think>\n", forced=named) == (
        "",
        "Hm.",
        [ULM],
    )
    both = f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{FINAL}{arguments(ULM)}"
    for text, reasoning in ((both, "Hm."), (FINAL + arguments(ULM), "")):
        assert parse(form("<|channel|>"), text, step, forced=named) == ("", reasoning, [ULM])


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (Grammar("json_schema", '{"type": "object"}'), '{"a": 1}'),
        (Grammar("regex", "a{2}"), "aa"),
        (Grammar("choice", '["aa", "b"]'), "aa"),
        (Grammar("grammar", "start: x x\nx: /a/"), "aa"),
    ],
)
@pytest.mark.parametrize(
    ("template", "special", "prompt", "leads"),
    [
        ("<think>", [], "user: Hi<think>\n", ["Hm.\n</think>\n\n", "</think>"]),
        ("<think>", ["</think>"], "user: Hi<think>\n", ["Hm.\n</think>\n\n", "</think>"]),
        ("<think>", [], "user: Hi", [""]),
        (
            "",
            ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"],
            "",
            [FINAL, f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{FINAL}"],
        ),
    ],
)
def test_a_form_is_that_of_what_follows_reasoning(
    grammar: Grammar, text: str, template: str, special: list[str], prompt: str, leads: list[str]
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    messages = MessageForm(tokenizer, ChatOptions())
    reply_form = messages.reply_form(conversation(), prompt)
    assert reply_form is not None
    structured = StructuredOutput(tokenizer, Mock(), GrammarLimits())
    grammars = Grammars(vocabulary_of(tokenizer))
    for lead in leads:
        matcher = grammars.matcher(asyncio.run(structured.compile(grammar, reply_form.lead)))
        assert matcher.consume_tokens(tokenizer(lead + text).input_ids), matcher.get_error()
        assert matcher.is_accepting()
    if "" not in leads:
        matcher = grammars.matcher(asyncio.run(structured.compile(grammar, reply_form.lead)))
        matcher.consume_tokens(tokenizer(text).input_ids)
        assert not matcher.is_accepting()


def test_the_arguments_of_a_named_call_come_as_they_are_written() -> None:
    reply_form = form("").reply_form(conversation(forced=ForcedCalls("f")), "")
    assert reply_form is not None
    parser = reply_form.new_parser()
    first, second = (parser.feed(text, is_last=False).calls for text in ('{"a"', ": 1}"))
    assert (first[0].name, first[0].arguments) == ("f", '{"a"')
    assert second == (CallPart(0, ": 1}"),)
    assert parser.feed("", is_last=True).calls == ()


def test_required_calls_come_as_they_are_written_and_one_that_is_cut_is_not_lost() -> None:
    tools = conversation(forced=ForcedCalls())
    reply_form = form("").reply_form(tools, "")
    assert reply_form is not None
    parser = reply_form.new_parser()
    reply = '[{"name": "get_weather", "parameters": {"city": "Ulm"}}, {"name": "get_weather", '
    early = [part for text in reply for part in parser.feed(text, is_last=False).calls]
    assert "".join(part.arguments for part in early) == '{"city": "Ulm"}'
    late = (*parser.feed('"parameters": {"ci', is_last=False).calls,)
    assert [(part.index, part.name, part.arguments) for part in late] == [
        (1, "get_weather", ""),
        (1, None, '{"ci'),
    ]
    assert parser.feed("", is_last=True) == MessagePart()


def test_required_calls_that_are_cut_before_their_arguments_are_text() -> None:
    reply_form = form("").reply_form(conversation(forced=ForcedCalls()), "")
    assert reply_form is not None
    parser = reply_form.new_parser()
    assert parser.feed('[{"name": "get_', is_last=False) == MessagePart()
    assert parser.feed("", is_last=True) == MessagePart('[{"name": "get_')


def test_special_tokens_that_mark_parts_stay_in_the_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[OTHER]"]})
    tokenizer.chat_template = "[TOOL_CALLS]"
    messages = MessageForm(tokenizer, ChatOptions())
    reply_form = messages.reply_form(conversation(), "")
    assert reply_form is not None
    kept = {tokenizer.convert_ids_to_tokens(token) for token in reply_form.kept_tokens}
    assert kept == {"[TOOL_CALLS]", "</s>"}
