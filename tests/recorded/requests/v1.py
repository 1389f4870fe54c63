"""V1's predict: every task, every parameter, whole and in events."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Rest
from tests.recorded.requests.common import FIELDS, LOOP, OTHER, PROMPT, WRONG, label

_FEW = {"max_new_tokens": 8}
_SAMPLED = {"max_new_tokens": 12, "seed": 7}


def _body(*instances: Any, **parameters: Any) -> dict[str, Any]:
    return {"instances": list(instances)} | ({"parameters": parameters} if parameters else {})


def _generation(**parameters: Any) -> dict[str, Any]:
    return _body(PROMPT, **_FEW | parameters)


_GENERATION: dict[str, object] = {
    "greedy": _generation(),
    "defaults": _body(PROMPT),
    "two instances": _body(PROMPT, OTHER, **_FEW),
    "keys of an instance": _body({"text": PROMPT}, {"prompt": OTHER}, {"data": OTHER}, **_FEW),
    "own parameters": _body(
        {"text": PROMPT, "parameters": {"max_new_tokens": 3}}, {"text": PROMPT}, **_FEW
    ),
    "own parameters alone": _body({"text": PROMPT, "parameters": {"max_new_tokens": 3}}),
    "own null keeps the shared": _body({"text": OTHER, "parameters": {"stop": None}}, **_FEW),
    "null parameters": _generation(temperature=None, stop=None, seed=None),
    "one token": _generation(max_new_tokens=1),
    "the longest reply": _body(LOOP, max_new_tokens=127),
    "full text": _generation(return_full_text=True),
    "stop": _generation(stop="the"),
    "stop list": _generation(stop=["zzz", "middle", "park"]),
    "stop never": _generation(stop="zzz"),
    "stop and full text": _generation(stop=[" park"], return_full_text=True),
    "no stops": _generation(stop=[]),
    "repetition penalty": _body(LOOP, max_new_tokens=20, repetition_penalty=1.8),
    "presence penalty": _body(LOOP, max_new_tokens=20, presence_penalty=2),
    "frequency penalty": _body(LOOP, max_new_tokens=20, frequency_penalty=1.5),
    "temperature 0": _generation(temperature=0, seed=3),
    "temperature": _body(PROMPT, **_SAMPLED, temperature=0.8),
    "high temperature": _body(PROMPT, **_SAMPLED, temperature=2),
    "top_p": _body(PROMPT, **_SAMPLED, top_p=0.9),
    "top_k": _body(PROMPT, **_SAMPLED, top_k=5),
    "top_k 1 is greedy": _generation(top_k=1),
    "all of sampling": _body(PROMPT, **_SAMPLED, temperature=1.5, top_p=0.95, top_k=40),
    "two sampled alike": _body(PROMPT, PROMPT, **_SAMPLED, temperature=1),
    "timeout": _generation(timeout=300),
    "empty prompt": _body("", **_FEW),
    "unicode": _body("Zoë naïve 日本 🙂\n\tß", **_FEW, return_full_text=True),
    "escapes of a pair": b'{"instances": ["\\ud83d\\ude42 a"]}',
    "duplicate keys": b'{"instances": ["one"], "instances": ["two"], "parameters": '
    b'{"max_new_tokens": 9, "max_new_tokens": 2, "return_full_text": true}}',
    "no instances": {"parameters": _FEW},
    "empty object": {},
    "instances is no list": {"instances": PROMPT},
    "instances is null": {"instances": None},
    "instances is empty": {"instances": []},
    "too many instances": {"instances": ["a"] * 257},
    "instance is a number": _body(PROMPT, 3),
    "instance is null": _body(None),
    "instance is a list": _body([PROMPT]),
    "instance without a prompt": _body({"parameters": {}}),
    "instance with two prompts": _body({"text": PROMPT, "data": OTHER}),
    "prompt is a number": _body({"text": 5}),
    "unknown key": {"instances": [PROMPT], "parameter": {}},
    "unknown key of an instance": _body({"text": PROMPT, "txt": OTHER}),
    "parameters is a list": {"instances": [PROMPT], "parameters": []},
    "parameters is null": {"instances": [PROMPT], "parameters": None},
    "own parameters is a text": _body({"text": PROMPT, "parameters": "none"}),
    "unknown parameter, near": _body(PROMPT, max_new_token=5),
    "unknown parameter, far": _body(PROMPT, zzzzzz=5),
    "unknown parameter, long": _body(PROMPT, **{"p" * 100: 5}),
    "own wrong parameter": _body({"text": PROMPT, "parameters": {"top_p": 2}}),
    "logit_bias is not V1's": _body(PROMPT, logit_bias={"5": 1}),
    "logprobs is not V1's": _body(PROMPT, logprobs=1),
    "prompt too long": _body("word " * 200),
    "reply too long": _body(PROMPT, max_new_tokens=120),
}

_STREAMS: dict[str, object] = {
    "greedy": _generation(),
    "stop": _generation(stop=" middle", max_new_tokens=20),
    "full text": _generation(return_full_text=True),
    "sampled": _body(PROMPT, **_SAMPLED, temperature=1),
    "unicode": _body("日本 🙂", max_new_tokens=16, temperature=2, seed=11),
    "two": _body(PROMPT, {"text": OTHER, "parameters": {"max_new_tokens": 3}}, **_FEW),
    "bad parameter": _generation(top_k=-2),
    "no instances": {},
}

_TASKS: dict[str, dict[str, object]] = {
    "t5": {
        "greedy": _body("a text", max_new_tokens=12),
        "defaults": _body("a text"),
        "full text": _body("a text", max_new_tokens=6, return_full_text=True),
        "two": _body("a text", "another, which is longer", max_new_tokens=6),
        "sampled": _body("a text", max_new_tokens=8, temperature=10, seed=5),
        "penalties": _body("a text", max_new_tokens=12, repetition_penalty=2, presence_penalty=1),
        "empty": _body("", max_new_tokens=4),
        "too long": _body("a" * 127),
        "reply too long": _body("a text", max_new_tokens=125),
    },
    "classifier": {
        "pair": _body({"text": "I like it", "text_pair": "I do not"}),
        "keys": _body({"prompt": "I like it"}, {"data": "I like it"}, {"sequence": "I like it"}),
        "probabilities": _body("I like it", return_probabilities=True),
        "logits": _body("I like it", return_raw_logits=True),
        "own logits": _body({"text": "a", "parameters": {"return_raw_logits": True}}, "b"),
        "text twice": _body({"text": "a", "data": "b"}),
        "pair alone": _body({"text_pair": "b"}),
        "empty text": _body(""),
        "truncate": _body("a" * 300, truncate=True),
        "wrong type": _body("a", return_probabilities=1),
        "of generation": _body("a", max_new_tokens=5),
        "wrong timeout": _body("a", timeout=0),
        "own timeout": _body({"text": "a", "parameters": {"timeout": 5}}),
    },
    "tagger": {
        **{
            strategy: _body("Ada lives in London", aggregation_strategy=strategy)
            for strategy in ("none", "simple", "first", "average", "max", "best")
        },
        "offsets": _body("Ada", return_offsets_mapping=True),
        "wrong offsets": _body("Ada", return_offsets_mapping="yes"),
        "truncate": _body("Ada " * 60, truncate=True),
    },
    "answerer": {
        "short answers": _body(FIELDS["answerer"], max_answer_len=3),
        "windows": _body({"question": "Who?", "context": "It was Ada. " * 30}, doc_stride=16),
        "impossible": _body(FIELDS["answerer"], handle_impossible_answer=True),
        "own parameters": _body({**FIELDS["answerer"], "parameters": {"max_answer_len": 1}}),
        "question too long": _body({"question": "Who? " * 40, "context": "Ada."}),
        "empty context": _body({"question": "Who?", "context": ""}),
        "no answer": _body({"question": "Who?", "context": ""}, handle_impossible_answer=True),
        "wrong length": _body(FIELDS["answerer"], max_answer_len=0),
        "wrong stride": _body(FIELDS["answerer"], doc_stride=True),
    },
    "filler": {
        "top_k": _body("I <mask> it", top_k=2),
        "two masks": _body("I <mask> <mask>", top_k=2),
        "own top_k": _body("I <mask> it", {"text": "<mask>", "parameters": {"top_k": 1}}),
        "no mask": _body("I like it"),
        "wrong top_k": _body("I <mask> it", top_k=101),
    },
    "embedder": {
        "dimensions": _body("I like it", dimensions=8),
        "not normalised": _body("I like it", normalize=False, dimensions=8),
        "prompt": _body("I like it", prompt_name="query", dimensions=8),
        "unknown prompt": _body("I like it", prompt_name="passage"),
        "wrong dimensions": _body("I like it", dimensions=9),
        "too many dimensions": _body("I like it", dimensions=65),
        "tokens": _body("I like it", tokens=[7], dimensions=8),
        "tokens is a text": _body("I like it", tokens="7"),
        "tokens is a number": _body("I like it", tokens=7),
        "truncate": _body("a" * 300, truncate=True, dimensions=8),
    },
    "reranker": {
        "document": _body({"query": "Who?", "document": "Ada did it"}),
        "raw": _body(FIELDS["reranker"], raw_scores=True),
        "text twice": _body({"query": "Who?", "document": "a", "text": "b"}),
        "a lone text": _body("Ada did it"),
        "wrong raw": _body(FIELDS["reranker"], raw_scores=0),
    },
}
"""Besides `_EACH`."""


def _of_each(fields: dict[str, str]) -> dict[str, object]:
    first, *_ = fields
    return {
        "fields": _body(fields),
        "several": _body(fields, {**fields, first: f"{fields[first]} <mask>"}, fields),
        "no fields": _body({}),
        "unknown field": _body({**fields, "txt": "a"}),
        "number": _body({**fields, first: 3}),
        "instance is null": _body(None),
        "no instances": {},
        "empty": {"instances": []},
        "too many": {"instances": ["a"] * 2049},
        "unknown parameter": _body(fields, truncat=True),
        "null parameter": _body(fields, truncate=None),
        "parameters is null": {"instances": [fields], "parameters": None},
        "too long": _body({**fields, first: "a" * 300}),
        "timeout": _body(fields, timeout=300),
    }


def _rest(server: str, name: str, body: object, **more: Any) -> Rest:
    return Rest(server, f"v1/{name}", f"/v1/models/{server}:predict", body, **more)


_EVENTS = {"accept": "text/event-stream"}

REQUESTS = [
    *(_rest("demo", name, body) for name, body in _GENERATION.items()),
    *(
        _rest("demo", f"{name} {label(value)}", _generation(**{name: value}))
        for name, values in WRONG.items()
        for value in values
    ),
    *(
        _rest("demo", f"events/{name}", body, headers=_EVENTS, interleaved=name == "two")
        for name, body in _STREAMS.items()
    ),
    *(_rest(server, n, body) for server, bodies in _TASKS.items() for n, body in bodies.items()),
    *(
        _rest(server, name, body)
        for server, fields in FIELDS.items()
        for name, body in _of_each(fields).items()
    ),
    _rest("t5", "events", _body("a text", max_new_tokens=6), headers=_EVENTS),
    _rest("classifier", "events", _body("I like it"), headers=_EVENTS),
    _rest("handler", "defaults with a seed", _body("a text", seed=3)),
    _rest("handler", "own style", _body("a text", temperature=0, return_full_text=False)),
    _rest("handler", "a long prompt is cut", _body("a text " * 20, seed=3, max_new_tokens=5)),
    _rest("handler", "two", _body("a text", {"data": "b", "parameters": {"top_k": 1}}, seed=1)),
    _rest("handler", "events", _body("a text", seed=3), headers=_EVENTS),
    _rest("handler", "wrong", _body("a text", top_p=2)),
]
