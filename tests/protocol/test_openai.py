"""OpenAI's routes, asked by OpenAI's own client over real sockets."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from predictor.errors import (
    DeadlineExceeded,
    GenerationFailed,
    NotReady,
    Overloaded,
    PromptTooLong,
)
from predictor.protocol.http.json_body import dump_json
from predictor.protocol.openai.keys import IGNORED, REFUSED, IgnoredKeys
from predictor.protocol.openai.request import (
    CHAT_KEYS,
    COMPLETION_KEYS,
    decode_chat,
    decode_completion,
)
from predictor.protocol.openai.response import ChatFormat, CompletionFormat, Envelope, encode
from predictor.tasks.answers import Completion, ScoredToken
from predictor.tasks.request import GenerationParameters, Message
from tests.protocol.stub import MAX_BODY_BYTES, Served

COMPLETIONS = "/openai/v1/completions"
CHAT = "/openai/v1/chat/completions"
PROMPT = {"model": "echo", "prompt": "a"}
HELLO = [{"role": "user", "content": "hé"}]
TALK = {"model": "echo", "messages": HELLO}
Asking = Any
"""What the client's overloaded methods take is more than a type checker follows here."""


@pytest.fixture
def asking(served: Served) -> Iterator[Asking]:
    url = f"{served.url}/openai/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as asking:
        yield asking


def parameters(served: Served) -> list[GenerationParameters]:
    return [prompt.parameters for prompt in served.model.requests[-1].prompts]


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# --- models ---


def test_the_models_are_listed(asking: Asking) -> None:
    (model,) = asking.models.list()
    assert (model.id, model.object, model.owned_by) == ("echo", "model", "accelerate-predictor")
    assert asking.models.retrieve("echo") == model


def test_an_unknown_model_is_not_found(asking: Asking) -> None:
    for ask in (
        lambda: asking.models.retrieve("org/nobody"),
        lambda: asking.completions.create(model="nobody", prompt="a"),
        lambda: asking.chat.completions.create(model="nobody", messages=HELLO),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            ask()
        assert refused.value.code == "model_not_found"
        assert refused.value.type == "invalid_request_error"


# --- completions ---


def test_a_prompt_is_completed(asking: Asking) -> None:
    answer = asking.completions.create(model="echo", prompt="hello")
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model) == ("text_completion", "echo")
    (choice,) = answer.choices
    assert (choice.text, choice.index, choice.finish_reason) == ("HELLO", 0, "stop")
    assert choice.logprobs is None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 5, 10)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [array("i", [1, 2])]),
        ([[1, 2], [3]], [array("i", [1, 2]), array("i", [3])]),
        ([2**31 - 1, 2**31, -(2**80)], [array("i", [2**31 - 1, -1, -1])]),
    ],
)
def test_prompts_are_texts_or_token_ids(
    served: Served, asking: Asking, prompt: Any, texts: list[Any]
) -> None:
    asking.completions.create(model="echo", prompt=prompt)
    assert [each.text for each in served.model.requests[-1].prompts] == texts


def test_n_replies_to_a_prompt_stand_together_and_its_tokens_count_once(
    served: Served, asking: Asking
) -> None:
    answer = asking.completions.create(model="echo", prompt=["a", "bc"], n=2, seed=7)
    texts = [(choice.index, choice.text) for choice in answer.choices]
    assert texts == [(0, "A"), (1, "A"), (2, "BC"), (3, "BC")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)
    assert [each.seed for each in parameters(served)] == [7, 8, 7, 8]


def test_the_parameters_of_a_completion_reach_the_model(served: Served, asking: Asking) -> None:
    extensions = {"top_k": 3, "repetition_penalty": 1.5}
    asking.completions.create(
        model="echo",
        prompt="a",
        echo=True,
        frequency_penalty=0.5,
        logit_bias={"5": -100},
        max_tokens=4,
        presence_penalty=-0.5,
        seed=9,
        stop=["x", "y"],
        temperature=0.5,
        top_p=0.9,
        user="somebody",
        extra_body=extensions,
    )
    assert parameters(served) == [
        GenerationParameters(
            max_new_tokens=4,
            temperature=0.5,
            top_p=0.9,
            top_k=3,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.5,
            logit_bias={5: -100.0},
            seed=9,
            stop=("x", "y"),
            return_full_text=True,
            default_new_tokens=16,
        )
    ]


def test_what_is_not_said_or_null_is_left_to_the_model() -> None:
    plain = decode_completion(PROMPT).request.prompts[0].parameters
    assert plain == GenerationParameters(default_new_tokens=16)
    nothing = dict.fromkeys({*CHAT_KEYS, *COMPLETION_KEYS, *REFUSED, *IGNORED})
    decoded = decode_completion({**nothing, **PROMPT} | {"messages": None})
    assert decoded.request.prompts[0].parameters == plain
    chat = decode_chat({**nothing, **TALK} | {"prompt": None})
    assert chat.request.prompts[0].parameters == GenerationParameters()


def test_a_completions_log_probabilities_are_lists(asking: Asking) -> None:
    answer = asking.completions.create(model="echo", prompt="ab", logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["A", "B"]
    assert logprobs.token_logprobs == [-0.5, -1.0]
    assert logprobs.top_logprobs == [{"A": -0.5, "?": -9.0}, {"B": -1.0, "?": -9.0}]
    assert logprobs.text_offset == [0, 1]


def test_a_completion_is_streamed(asking: Asking) -> None:
    chunks = list(asking.completions.create(model="echo", prompt=["ab", "c"], stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    pieces = [(c.choices[0].index, c.choices[0].text, c.choices[0].finish_reason) for c in chunks]
    assert pieces == [(0, "A", None), (1, "C", "stop"), (0, "B", "stop")]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_a_streams_log_probabilities_have_offsets_in_the_whole_text(asking: Asking) -> None:
    chunks = asking.completions.create(model="echo", prompt="abc", logprobs=0, stream=True)
    assert [chunk.choices[0].logprobs.text_offset for chunk in chunks] == [[0], [1], [2]]


def test_a_stream_ends_with_its_usage_if_requested(asking: Asking) -> None:
    *chunks, last = asking.completions.create(
        model="echo",
        prompt=["ab", "c"],
        n=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 6)


def test_a_stream_ends_with_done(client: httpx.Client) -> None:
    response = client.post(COMPLETIONS, json={**PROMPT, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\ndata: [DONE]\n\n")


# --- chat completions ---


def test_a_conversation_is_replied_to(served: Served, asking: Asking) -> None:
    parts = [{"type": "text", "text": "how "}, {"type": "text", "text": "so?"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "no", "refusal": None, "tool_calls": None},
        {"role": "user", "content": parts, "name": "ann"},
    ]
    answer = asking.chat.completions.create(model="echo", messages=messages)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert served.model.requests[-1].prompts[0].text.messages == (
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "no"),
        Message("user", "how so?"),
    )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content.endswith("USER: HOW SO?")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert answer.usage.total_tokens == 2 * answer.usage.prompt_tokens


def test_an_answer_can_be_sent_back_as_it_came(asking: Asking) -> None:
    answer = asking.chat.completions.create(model="echo", messages=HELLO)
    messages = [*HELLO, answer.choices[0].message, *HELLO]
    assert asking.chat.completions.create(model="echo", messages=messages).choices


def test_the_parameters_of_a_chat_reach_the_model(served: Served, asking: Asking) -> None:
    asking.chat.completions.create(
        model="echo",
        messages=HELLO,
        max_completion_tokens=5,
        max_tokens=4,
        n=2,
        seed=2**63 - 1,
        stop="x",
        temperature=0,
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        metadata={"a": "b"},
        store=False,
    )
    first, second = parameters(served)
    assert (first.max_new_tokens, first.stop, first.temperature) == (5, ("x",), 0)
    assert (first.seed, second.seed) == (2**63 - 1, 0)


def test_a_chats_log_probabilities_are_told_by_token(served: Served, asking: Asking) -> None:
    answer = asking.chat.completions.create(
        model="echo", messages=HELLO, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == "USER: HÉ"
    last = content[-1]
    assert (last.token, last.bytes, last.logprob) == ("É", [0xC3, 0x89], -4.0)
    assert [(top.token, top.logprob) for top in last.top_logprobs] == [("É", -4.0), ("?", -9.0)]
    assert parameters(served)[0].logprobs == 2


def test_a_chat_is_streamed_to_an_asynchronous_client(served: Served) -> None:
    async def ask() -> list[Any]:
        url = f"{served.url}/openai/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as asking:
            stream = await asking.chat.completions.create(
                model="echo",
                messages=HELLO,  # type: ignore[arg-type]
                n=2,
                logprobs=True,
                stream=True,
                stream_options={"include_usage": True},
            )
            return [chunk async for chunk in stream]

    *chunks, last = asyncio.run(ask())
    openings = [chunk.choices[0] for chunk in chunks[:2]]
    assert [(each.index, each.delta.role, each.delta.content) for each in openings] == [
        (0, "assistant", ""),
        (1, "assistant", ""),
    ]
    for index in (0, 1):
        parts = [c.choices[0] for c in chunks[2:] if c.choices[0].index == index]
        assert "".join(part.delta.content for part in parts) == "USER: HÉ"
        assert [part.logprobs.content[0].token for part in parts] == list("USER: HÉ")
        assert [part.finish_reason for part in parts] == [None] * 7 + ["stop"]
    assert {chunk.object for chunk in (*chunks, last)} == {"chat.completion.chunk"}
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 8, 16)


ODD = Completion(
    text="é!",
    ending="stop_sequence",
    prompt_tokens=1,
    completion_tokens=3,
    tokens=(
        ScoredToken(1, "\ufffd", float("-inf"), top=(("\ufffd", -1.0), ("\ufffd", -2.0))),
        ScoredToken(2, "<end>", -0.5, special=True),
        ScoredToken(3, "!", -0.5),
    ),
)
"""Half a character that was next to impossible, a special token, and a plain one."""


CALL = decode_completion({"prompt": "a", "logprobs": 0})


def test_odd_tokens_have_finite_log_probabilities_and_no_invented_bytes() -> None:
    logprobs: Any = ChatFormat().choice(ODD, CALL)["logprobs"]
    first, *_, last = logprobs["content"]
    assert (first["logprob"], first["bytes"]) == (-9999.0, None)
    assert last["bytes"] == [0x21]


def test_a_special_token_takes_no_room_in_the_text() -> None:
    logprobs: Any = CompletionFormat().choice(ODD, CALL)["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 1]
    top = json.loads(dump_json(logprobs))["top_logprobs"]
    assert top == [{"\ufffd": -1.0}, {"<end>": -0.5}, {"!": -0.5}]


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": None}, "The body has no 'model'."),
        ({"model": 3}, "model must be a string, not an integer."),
        ({"prompt": None}, "The body has no 'prompt'."),
        ({"prompt": 3}, "prompt must be a string or a list, not an integer."),
        ({"prompt": []}, "prompt is empty; give at least one."),
        ({"prompt": ["a", 3]}, "prompt[1] must be a string, not an integer."),
        ({"prompt": [3, "a"]}, "prompt[1] must be an integer, not a string."),
        ({"prompt": [3, True]}, "prompt[1] must be an integer, not a boolean."),
        ({"prompt": [[3], [0.5]]}, "prompt[1][0] must be an integer, not a number."),
        ({"prompt": [[3], 4]}, "prompt[1] must be a list, not an integer."),
        ({"prompt": ["a"] * 257}, "A request has at most 256 prompts; here are 257."),
        ({"n": 257}, "A request has at most 256 prompts; here are 257."),
        ({"prompt": ["a"] * 16, "n": 17}, "A request has at most 256 prompts; here are 272."),
        ({"n": 0}, "n must be at least 1."),
        ({"n": 1.5}, "n must be an integer, not a number."),
        ({"max_tokens": 0}, "max_tokens must be between 1 and 2147483647."),
        ({"max_tokens": "3"}, "max_tokens must be an integer, not a string."),
        ({"logprobs": 6}, "logprobs must be between 0 and 5."),
        ({"logprobs": True}, "logprobs must be an integer, not a boolean."),
        ({"best_of": 0}, "best_of must be at least 1."),
        ({"best_of": 2, "n": 3}, "best_of must be at least n, which is 3."),
        (
            {"best_of": 2, "stream": True},
            "best_of above n cannot be streamed: the best is known at the end.",
        ),
        ({"best_of": 257}, "A request has at most 256 prompts; here are 257."),
        ({"echo": 1}, "echo must be true or false, not an integer."),
        ({"temperature": -1}, "temperature must be 0 (greedy) or between 0.01 and 100, not -1."),
        ({"presence_penalty": 3}, "presence_penalty must be between -2 and 2, not 3."),
        ({"logit_bias": {"a": 1}}, "logit_bias must have token ids as keys."),
        ({"stop": [3]}, "stop must be a string or a list of strings."),
        ({"stream": 1}, "stream must be a boolean, not an integer."),
        ({"stream_options": {}}, "stream_options needs stream to be true."),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage must be a boolean, not an integer.",
        ),
        (
            {"suffix": "x"},
            "suffix is not supported: a reply continues its prompt, and fills no gap.",
        ),
        (
            {"include_stop_str_in_output": True},
            "include_stop_str_in_output is not supported: replies are the text of whole tokens "
            "without the special ones.",
        ),
    ],
)
def test_a_wrong_completion_is_refused_in_one_sentence(
    client: httpx.Client, change: dict[str, Any], sentence: str
) -> None:
    error = refusal(client.post(COMPLETIONS, json={**PROMPT, **change}), 400)
    assert error == {
        "message": sentence,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"messages": None}, "The body has no 'messages'."),
        ({"messages": "hi"}, "messages must be a list, not a string."),
        ({"messages": []}, "messages is empty; give at least one."),
        ({"messages": ["hi"]}, "messages[0] must be an object, not a string."),
        ({"messages": [{"content": "hi"}]}, "messages[0] has no 'role'."),
        (user(None), "messages[0] has no 'content'."),
        (user(3), "messages[0].content must be a string or a list, not an integer."),
        (
            {"messages": [*HELLO, {"role": "robot", "content": "a"}]},
            "messages[1].role must be one of system, developer, user, assistant, tool.",
        ),
        (user("hi", tool_calls=[{}]), "messages[0].tool_calls is for the role assistant."),
        (
            user([{"type": "image_url", "image_url": {"url": "x"}}]),
            "messages[0].content[0] is of type 'image_url'; only 'text' is supported.",
        ),
        (
            user([{"type": "text", "text": 3}]),
            "messages[0].content[0].text must be a string, not an integer.",
        ),
        ({"logprobs": 1}, "logprobs must be a boolean, not an integer."),
        ({"top_logprobs": 1}, "top_logprobs needs logprobs to be true."),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs must be between 0 and 20.",
        ),
        ({"max_tokens": 0}, "max_tokens must be between 1 and 2147483647."),
        (
            {"max_completion_tokens": 0},
            "max_completion_tokens must be between 1 and 2147483647.",
        ),
        ({"tools": [{}]}, "tools[0].type must be 'function'."),
        ({"tool_choice": "auto"}, "tool_choice needs tools; give at least one."),
        ({"modalities": ["audio"]}, "modalities is not supported: only ['text'] is."),
    ],
)
def test_a_wrong_chat_is_refused_in_one_sentence(
    client: httpx.Client, change: dict[str, Any], sentence: str
) -> None:
    error = refusal(client.post(CHAT, json={**TALK, **change}), 400)
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(sentence)
    assert error["message"] == sentence or sentence.endswith("; ")


@pytest.mark.parametrize(
    ("types", "supported"), [(completion_params, COMPLETION_KEYS), (chat_params, CHAT_KEYS)]
)
def test_every_key_of_openais_client_is_known(types: Any, supported: tuple[str, ...]) -> None:
    for kind in (types.CompletionCreateParamsNonStreaming, types.CompletionCreateParamsStreaming):
        accepted = {*supported, *REFUSED, *IGNORED}
        assert set(kind.__annotations__) - accepted == set()


def test_no_key_is_in_two_groups() -> None:
    supported = {*COMPLETION_KEYS, *CHAT_KEYS}
    assert not supported & REFUSED.keys()
    assert not supported & IGNORED
    assert not IGNORED & REFUSED.keys()


@pytest.mark.parametrize(
    "more",
    [
        {"min_p": 0},
        {"top_k": -1},
        {"stop": ""},
        {"stop": ["", "x"]},
        {"logprobs": False},
        {"best_of": 1},
        {"use_beam_search": False},
        {"skip_special_tokens": True},
        {"add_special_tokens": True},
        {"min_tokens": 0},
        {"stop_token_ids": []},
        {"chat_template_kwargs": {}},
        {"length_penalty": 1.0},
        {"stream": True, "stream_options": {"continuous_usage_stats": False}},
        {"stream": True, "stream_options": {"include_usage": None}},
        {"guided_whatever": None},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, PROMPT), (CHAT, TALK)])
def test_a_key_that_asks_for_nothing_is_accepted(
    client: httpx.Client, path: str, body: dict[str, Any], more: dict[str, Any]
) -> None:
    response = client.post(path, json={**body, **more})
    assert response.status_code == 200, response.text


def test_a_key_that_no_table_has_is_ignored_and_logged_once(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="predictor.protocol.openai.keys"):
        for path, body in ((COMPLETIONS, PROMPT), (COMPLETIONS, PROMPT), (CHAT, TALK)):
            assert client.post(path, json={**body, "tempreture": 1}).status_code == 200
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["Requests have the key 'tempreture', which is ignored"]


def test_names_of_ignored_keys_are_logged_up_to_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"key {number}" for number in range(1000)]
    call = decode_completion({**PROMPT, **dict.fromkeys(names, 1)})
    keys = IgnoredKeys()
    with caplog.at_level("WARNING", logger="predictor.protocol.openai.keys"):
        keys.log(["x" * 10_000])
        for _ in range(2):
            keys.log(call.ignored)
    assert len(caplog.records) == 64
    assert max(len(record.getMessage()) for record in caplog.records) < 200


def test_the_best_of_several_replies_are_returned() -> None:
    def reply(text: str, *logprobs: float) -> Completion:
        tokens = tuple(ScoredToken(1, text, logprob) for logprob in logprobs)
        return Completion(text, "eos_token", 3, len(tokens), tokens)

    call = decode_completion({**PROMPT, "prompt": ["a", "b"], "best_of": 2, "seed": 1})
    assert [prompt.parameters.seed for prompt in call.request.prompts] == [1, 2, 1, 2]
    completions = [reply("w", -1), reply("x", -0.5, -0.6), reply("y", -1, -2), reply("z", -4)]
    envelope = Envelope.new(CompletionFormat(), "m")
    document: Any = encode(CompletionFormat(), envelope, call, completions)
    assert [choice["text"] for choice in document["choices"]] == ["x", "y"]
    assert [choice["logprobs"] for choice in document["choices"]] == [None, None]
    usage = {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}
    assert document["usage"] == usage | {"prompt_tokens_details": {"cached_tokens": 0}}


def test_of_several_replies_to_a_prompt_the_fewest_cached_tokens_count() -> None:
    call = decode_completion({**PROMPT, "prompt": ["a", "b"], "n": 2})
    completions = [
        Completion("x", "length", 40, 1, cached_tokens=count) for count in (32, 0, 16, 32)
    ]
    document: Any = encode(
        CompletionFormat(), Envelope.new(CompletionFormat(), "m"), call, completions
    )
    assert document["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_is_not_supported_is_refused_by_name(asking: Asking, key: str) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{key} is not supported"):
        asking.chat.completions.create(model="echo", messages=HELLO, extra_body={key: {"a": 1}})


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("failure", "raised", "kind", "code"),
    [
        (
            PromptTooLong("Long.", tokens=2, limit=1),
            openai.BadRequestError,
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (
            Overloaded("Busy.", retry_after=3),
            openai.RateLimitError,
            "rate_limit_error",
            "rate_limit_exceeded",
        ),
        (NotReady("Not yet."), openai.InternalServerError, "server_error", None),
        (GenerationFailed("Failed."), openai.InternalServerError, "server_error", None),
        (DeadlineExceeded("Late."), openai.InternalServerError, "timeout", None),
        (KeyError("a secret"), openai.InternalServerError, "server_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_the_clients_exception(
    served: Served,
    asking: Asking,
    failure: Exception,
    raised: type[openai.APIStatusError],
    kind: str,
    code: str | None,
    stream: bool,
) -> None:
    served.model.failure = failure
    with pytest.raises(raised) as refused:
        asking.chat.completions.create(model="echo", messages=HELLO, stream=stream)
    assert (refused.value.type, refused.value.code) == (kind, code)
    assert "secret" not in refused.value.message
    retry_after = "3" if isinstance(failure, Overloaded) else None
    assert refused.value.response.headers.get("retry-after") == retry_after


def test_a_failure_in_a_stream_is_its_last_event(
    served: Served, asking: Asking, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.model, "late_failure", GenerationFailed("Failed."))
    chunks = asking.completions.create(model="echo", prompt="ab", stream=True)
    assert [next(chunks).choices[0].text for _ in "ab"] == ["A", "B"]
    with pytest.raises(openai.APIError, match=r"Failed\.") as failed:
        next(chunks)
    assert failed.value.type == "server_error"
    lines = client.post(COMPLETIONS, json={**PROMPT, "stream": True}).text.split("\n\n")
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["message"] == "Failed."


def test_a_model_that_is_not_ready_gets_no_request(served: Served, client: httpx.Client) -> None:
    served.model.ready = False
    error = refusal(client.post(CHAT, json={"model": "echo"}), 503)
    assert (error["type"], error["message"]) == ("server_error", "Model 'echo' is not ready.")


def test_the_header_limits_the_time(served: Served, client: httpx.Client) -> None:
    client.post(COMPLETIONS, json=PROMPT, headers={"x-request-timeout": "2.5"})
    assert served.model.timeouts[-1] == 2.5
    late = client.post(COMPLETIONS, json=PROMPT, headers={"x-request-timeout": "soon"})
    assert "x-request-timeout" in refusal(late, 400)["message"]


@pytest.mark.parametrize("path", ["/openai", "/openai/v1/images", "/openai/v2/models"])
def test_an_unknown_path_is_refused_in_openais_form(client: httpx.Client, path: str) -> None:
    assert refusal(client.get(path), 404)["message"] == "There is nothing at this path."


def test_a_wrong_method_or_body_is_refused_in_openais_form(client: httpx.Client) -> None:
    assert refusal(client.get(COMPLETIONS), 405)["type"] == "invalid_request_error"
    assert "JSON" in refusal(client.post(CHAT, content=b"{"), 400)["message"]
    large = client.post(CHAT, content=b" " * (MAX_BODY_BYTES + 1))
    assert refusal(large, 413)["type"] == "invalid_request_error"


def test_other_paths_keep_their_form(client: httpx.Client) -> None:
    assert client.get("/openaix").json() == {"error": "There is nothing at this path."}
