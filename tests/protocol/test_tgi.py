"""Text Generation Inference's API over real sockets, by Hugging Face's client and in raw bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import OverloadedError, ValidationError

from predictor.errors import DeadlineExceeded, GenerationFailed, NotReady, Overloaded
from predictor.protocol.tgi.request import PARAMETERS, REFUSED, decode_body
from predictor.protocol.tgi.response import Events, whole
from predictor.tasks.answers import Completion, Piece, ScoredToken
from predictor.tasks.request import GenerationParameters, Grammar
from predictor.tasks.text_tokens import TextTokens
from tests.protocol.stub import Served, serve

A = {"id": 65, "text": "A", "logprob": -0.5, "special": False}
B = {"id": 66, "text": "B", "logprob": -1.0, "special": False}


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with serve(tgi=True) as served:
        served.model.tokens = TextTokens(None, 64, 128)
        yield served


@pytest.fixture
def hub(served: Served) -> Iterator[huggingface_hub.InferenceClient]:
    with huggingface_hub.InferenceClient(served.url, timeout=30) as client:
        yield client


def parsed(**parameters: Any) -> GenerationParameters:
    body = json.dumps({"inputs": "a", "parameters": parameters}).encode()
    return decode_body(body, False).parameters


def events(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    return [json.loads(block.removeprefix("data:")) for block in blocks]


def test_hugging_faces_client_gets_a_text(hub: Any, served: Served) -> None:
    assert hub.text_generation("ab", max_new_tokens=7, stop=["x"]) == "AB"
    parameters = served.model.requests[-1].prompts[0].parameters
    assert (parameters.max_new_tokens, parameters.stop) == (7, ("x",))
    assert parameters.logprobs is None


def test_hugging_faces_client_gets_details(hub: Any, served: Served) -> None:
    answer = hub.text_generation("ab", details=True, seed=3, top_n_tokens=2)
    assert answer.generated_text == "AB"
    assert answer.details.finish_reason == "eos_token"
    assert (answer.details.generated_tokens, answer.details.seed) == (2, 3)
    assert [token.text for token in answer.details.tokens] == ["A", "B"]
    assert served.model.requests[-1].prompts[0].parameters.logprobs == 2


def test_hugging_faces_client_gets_a_stream(hub: Any) -> None:
    assert list(hub.text_generation("ab", stream=True)) == ["A", "B"]
    *_, last = hub.text_generation("ab", stream=True, details=True)
    assert (last.index, last.generated_text, last.token.id) == (2, "AB", 66)
    assert (last.details.finish_reason, last.details.input_length) == ("eos_token", 2)


def test_hugging_faces_client_sees_what_is_wrong(hub: Any, served: Served) -> None:
    with pytest.raises(ValidationError, match="watermark is not supported: replies are not"):
        hub.text_generation("a", watermark=True)
    served.model.failure = Overloaded("Too many.", retry_after=1)
    with pytest.raises(OverloadedError, match="Too many"):
        hub.text_generation("a")
    with pytest.raises(OverloadedError, match="Too many"):
        list(hub.text_generation("a", stream=True))


@pytest.mark.parametrize(
    ("path", "streams", "expected"),
    [
        ("/generate", False, {"generated_text": "AB"}),
        ("/generate", True, {"generated_text": "AB"}),
        ("/", False, [{"generated_text": "AB"}]),
    ],
)
def test_a_whole_reply_is_an_object_or_at_the_root_a_list(
    client: httpx.Client, path: str, streams: bool, expected: Any
) -> None:
    response = client.post(path, json={"inputs": "ab", "stream": streams})
    assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(("path", "streams"), [("/generate_stream", False), ("/", True)])
def test_a_stream_has_an_event_for_each_token(
    client: httpx.Client, path: str, streams: bool
) -> None:
    first, last = events(client.post(path, json={"inputs": "ab", "stream": streams}))
    assert first == {"index": 1, "token": A, "generated_text": None, "details": None}
    assert (last["token"], last["generated_text"]) == (B, "AB")
    assert last["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": 2,
        "seed": None,
        "input_length": 2,
    }


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (GenerationFailed("No."), 424, "generation"),
        (Overloaded("No.", retry_after=1), 429, "overloaded"),
        (NotReady("No."), 503, "healthcheck"),
        (DeadlineExceeded("No."), 504, "incomplete_generation"),
        (KeyError("secret"), 500, "incomplete_generation"),
    ],
)
def test_an_error_has_tgis_type(
    client: httpx.Client, served: Served, error: Exception, status: int, kind: str
) -> None:
    served.model.failure = error
    for path in ("/", "/generate", "/generate_stream"):
        response = client.post(path, json={"inputs": "a"})
        assert (response.status_code, response.json()["error_type"]) == (status, kind)
        assert "secret" not in response.text


def test_an_error_after_the_first_event_is_the_last_event(
    client: httpx.Client, served: Served
) -> None:
    served.model.late_failure = GenerationFailed("It failed.")
    try:
        *_, last = events(client.post("/generate_stream", json={"inputs": "ab"}))
    finally:
        served.model.late_failure = None
    assert last == {"error": "It failed.", "error_type": "incomplete_generation"}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "The body has no 'inputs'."),
        ({"inputs": ["a"]}, "inputs must be a string, not a list."),
        ({"inputs": ""}, "inputs is empty."),
        ({"inputs": "a", "parameters": []}, "parameters must be an object, not a list."),
        ({"inputs": "a", "stream": 1}, "stream must be a boolean, not an integer."),
        ([], "The body must be an object, not a list."),
    ],
)
def test_a_body_of_another_form_is_refused(client: httpx.Client, body: Any, sentence: str) -> None:
    response = client.post("/generate", json=body)
    assert response.status_code == 422
    assert response.json() == {"error": sentence, "error_type": "validation"}


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("max_new_tokens", 0, "max_new_tokens must be between 1"),
        ("max_new_tokens", "5", "max_new_tokens must be an integer"),
        ("temperature", 0, "temperature must be above 0"),
        ("temperature", -1, "temperature must be 0"),
        ("top_p", 1.5, "top_p must be above 0"),
        ("top_k", -2, "top_k must be between"),
        ("top_n_tokens", 21, "top_n_tokens must be between 0 and 20"),
        ("truncate", 0, "truncate must be between 1"),
        ("truncate", True, "truncate must be an integer"),
        ("stop", "text", "stop must be a list"),
        ("stop", ["a"] * 17, "stop takes at most 16"),
        ("seed", -1, "seed must be between 0"),
        ("do_sample", 1, "do_sample must be a boolean"),
        ("details", "yes", "details must be a boolean"),
        ("return_full_text", 1, "return_full_text must be true or false"),
        ("repetition_penalty", 0, "repetition_penalty must be between"),
        ("frequency_penalty", 3, "frequency_penalty must be between"),
        ("adapter_id", 5, "adapter_id must be a string"),
        ("typical_p", 0.5, "typical_p is not supported"),
        ("decoder_input_details", 1, "decoder_input_details must be a boolean"),
        ("best_of", 0, "best_of must be between 1 and 256"),
        ("best_of", True, "best_of must be an integer"),
        ("best_of", 2, "best_of above 1 needs do_sample"),
        ("grammar", "json", "grammar must be an object"),
        ("grammar", {"type": "xml", "value": ""}, "grammar.type must be one of json"),
        ("grammar", {"value": "a"}, "grammar.type must be a string"),
        ("grammar", {"type": "json"}, "grammar.value must be a JSON schema"),
        ("grammar", {"type": "json", "value": "{"}, "grammar.value is a text that is no JSON"),
        ("grammar", {"type": "regex", "value": ""}, "grammar.value is empty"),
        ("grammar", {"type": "regex", "value": 5}, "grammar.value must be a string"),
        ("grammar", {"type": "json_schema", "value": {}}, "grammar.value.schema must be a JSON"),
        ("grammar", {"type": "regex", "value": "a", "x": 1}, "Unknown key 'x' in grammar"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(
    client: httpx.Client, key: str, value: Any, word: str
) -> None:
    body = {"inputs": "a", "parameters": {key: value, "details": key != "details" or value}}
    response = client.post("/generate", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["error"].startswith(word)


def test_a_reply_is_greedy_unless_a_parameter_makes_it_sampled() -> None:
    assert parsed().temperature == 0
    assert parsed(temperature=1.0).temperature == 0
    assert parsed(do_sample=True).temperature == 1
    assert parsed(do_sample=True, temperature=0.5).temperature == 0.5
    assert parsed(top_p=0.9).temperature == 1
    assert parsed(top_k=9, temperature=1.0).temperature == 1


def test_defaults_are_tgis_and_not_the_models() -> None:
    parameters = parsed()
    assert (parameters.top_p, parameters.top_k, parameters.min_p) == (1, 0, 0)
    assert (parameters.repetition_penalty, parameters.default_new_tokens) == (1, 1024)
    assert parameters.max_new_tokens is None
    assert not parameters.return_full_text


def test_a_prompt_is_cut_at_its_beginning() -> None:
    parameters = parsed(truncate=5)
    assert (parameters.prompt_limit, parameters.keeps_prompt_end) == (5, True)


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ({"type": "json", "value": {"type": "object"}}, ("json_schema", '{"type": "object"}')),
        ({"type": "json", "value": '{"type": "object"}'}, ("json_schema", '{"type": "object"}')),
        ({"type": "regex", "value": "a+"}, ("regex", "a+")),
        (
            {"type": "json_schema", "value": {"name": "n", "schema": {"type": "object"}}},
            ("json_schema", '{"type": "object"}'),
        ),
    ],
)
def test_a_grammar_is_followed(grammar: Any, expected: Any) -> None:
    assert parsed(grammar=grammar).grammar == Grammar(*expected)


def test_null_is_absent_and_a_key_of_another_server_is_ignored(client: httpx.Client) -> None:
    nulls = dict.fromkeys([*PARAMETERS, *REFUSED, "mirostat"])
    body = {"inputs": "ab", "parameters": {**nulls, "num_beams": 4}, "model": "tgi", "stream": None}
    assert client.post("/generate", json=body).json() == {"generated_text": "AB"}


def test_values_that_ask_for_nothing_are_accepted(client: httpx.Client) -> None:
    harmless = {"best_of": 1, "watermark": False, "decoder_input_details": False, "seed": 1}
    response = client.post("/generate", json={"inputs": "ab", "parameters": harmless})
    assert response.status_code == 200


def test_the_most_probable_of_several_replies_is_the_answer() -> None:
    body = b'{"inputs": "a", "parameters": {"details": true, "best_of": 3, "do_sample": true}}'
    call = decode_body(body, False)
    assert len(call.request.prompts) == 3
    assert all(prompt.parameters.logprobs == 0 for prompt in call.request.prompts)
    replies = [
        Completion(text, "length", 1, len(scores), tuple(ScoredToken(5, "t", n) for n in scores))
        for text, scores in (("a", (-2.0, -2.0)), ("b", (-1.0, -1.0, -1.5)), ("c", (-3.0,)))
    ]
    answer: Any = whole(call, replies)
    assert answer["generated_text"] == "b"  # the sum of its log probabilities is not the largest
    others = answer["details"]["best_of_sequences"]
    assert [each["generated_text"] for each in others] == ["a", "c"]
    assert [len(each["tokens"]) for each in others] == [2, 1]


@pytest.mark.parametrize(
    ("parameters", "streams", "word"),
    [
        ({"best_of": 2, "do_sample": True}, True, "best_of above 1 cannot be streamed"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, False, "best_of above 1 takes no seed"),
        ({"best_of": 2, "temperature": 1.0}, False, "best_of above 1 needs do_sample"),
        ({"decoder_input_details": True}, True, "decoder_input_details cannot be streamed"),
    ],
)
def test_what_contradicts_itself_is_refused(
    client: httpx.Client, parameters: Any, streams: bool, word: str
) -> None:
    response = client.post("/", json={"inputs": "a", "stream": streams, "parameters": parameters})
    assert response.status_code == 422
    assert response.json()["error"].startswith(word)


def test_best_of_generates_without_details_too(hub: Any, served: Served) -> None:
    assert hub.text_generation("ab", best_of=2, do_sample=True) == "AB"
    assert len(served.model.requests[-1].prompts) == 2
    answer = hub.text_generation("ab", best_of=2, do_sample=True, details=True)
    assert [each.generated_text for each in answer.details.best_of_sequences] == ["AB"]


def test_a_prompt_whose_tokens_are_scored_has_details() -> None:
    assert parsed(decoder_input_details=True).prompt_logprobs == 0
    assert parsed(decoder_input_details=True, details=True).prompt_logprobs == 0
    assert parsed(decoder_input_details=False, details=True).prompt_logprobs is None


def test_scores_of_the_prompt_turn_details_on(client: httpx.Client) -> None:
    body = {"inputs": "ab", "parameters": {"decoder_input_details": True}}
    details = client.post("/generate", json=body).json()["details"]
    assert details["tokens"]


def test_an_unknown_adapter_is_no_model(client: httpx.Client) -> None:
    response = client.post("/generate", json={"inputs": "a", "parameters": {"adapter_id": "x"}})
    assert response.status_code == 404
    assert response.json()["error"] == "There is no model 'x'."


def test_info_has_the_limits(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert (info["model_id"], info["model_pipeline_tag"]) == ("echo", "text-generation")
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (63, 64)


def test_the_routes_are_in_the_document_and_the_root_still_says_that_it_lives(
    client: httpx.Client,
) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert paths["/generate"]["post"]["tags"] == ["tgi"]
    assert {"get", "post"} <= paths["/"].keys()
    assert client.get("/").json() == {"status": "alive"}


def test_without_the_setting_there_are_no_routes() -> None:
    with serve() as served, httpx.Client(base_url=served.url) as client:
        served.model.tokens = TextTokens(None, 64, 128)
        for path in ("/generate", "/generate_stream"):
            assert client.post(path, json={"inputs": "a"}).status_code == 404
        assert client.post("/", json={"inputs": "a"}).status_code == 405
        assert client.get("/info").status_code == 404


# --- the events of a stream ---


def token(text: str, *, special: bool = False) -> ScoredToken:
    return ScoredToken(ord(text[0]), text, -1.0, special=special)


def piece(text: str, count: int, *tokens: ScoredToken, ending: Any = None) -> Piece:
    return Piece(0, text, ending, 3, count, tokens)


def texts(pieces: list[Piece], **parameters: Any) -> list[tuple[str, str | None]]:
    body = json.dumps({"inputs": "a", "parameters": parameters}).encode()
    encode = Events(decode_body(body, True)).encode
    made: list[Any] = [event for each in pieces for event in encode(each)]
    assert [event["index"] for event in made] == list(range(1, len(made) + 1))
    assert all(event["details"] is None for event in made[:-1])
    return [(event["token"]["text"], event["generated_text"]) for event in made]


def test_the_end_token_is_the_last_event_and_no_part_of_the_text() -> None:
    end = token("</s>", special=True)
    pieces = [piece("a", 1, token("a")), piece("", 2, end), piece("", 2, ending="eos_token")]
    assert texts(pieces) == [("a", None), ("</s>", "a")]


def test_the_last_of_the_requested_tokens_is_the_last_event() -> None:
    pieces = [
        piece("a", 1, token("a")),
        piece("b", 2, token("b")),
        piece("!", 2, ending="length"),
    ]
    assert texts(pieces, max_new_tokens=2) == [("a", None), ("b!", "ab!")]


def test_a_special_token_amid_a_reply_is_an_event() -> None:
    pieces = [
        piece("", 1, token("<x>", special=True)),
        piece("b", 2, token("b")),
        piece("", 2, ending="length"),
    ]
    assert texts(pieces) == [("<x>", None), ("b", None), ("", "b")]


def test_the_prompt_is_in_the_whole_text_alone() -> None:
    pieces = [piece("why", 0), piece("a", 1, token("a"), ending="stop_sequence")]
    assert texts(pieces, return_full_text=True) == [("a", "whya")]


def test_details_have_alternatives_by_their_ids() -> None:
    chosen = ScoredToken(
        5, "a", -0.5, top=(("a", -0.5), ("</s>", -2.0)), top_ids=(5, 6), top_special=(False, True)
    )
    body = b'{"inputs": "a", "parameters": {"details": true, "top_n_tokens": 2}}'
    answer: Any = whole(decode_body(body, False), [Completion("a", "length", 1, 1, (chosen,))])
    (top,) = answer["details"]["top_tokens"]
    assert [(each["id"], each["special"]) for each in top] == [(5, False), (6, True)]
