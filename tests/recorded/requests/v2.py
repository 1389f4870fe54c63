"""V2's infer over REST as JSON: every task, parameters and tensors, outputs, shapes."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Rest
from tests.recorded.requests.common import FIELDS, LOOP, OTHER, PROMPT
from tests.recorded.tensors import tensor, texts

_FEW = {"max_new_tokens": 6}


def _body(*inputs: Any, **document: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **document}


def _generation(*others: Any, **parameters: Any) -> dict[str, Any]:
    return _body(texts("text", PROMPT), *others, parameters=_FEW | parameters)


_TWO = texts("text", PROMPT, OTHER)

_GOOD: dict[str, object] = {
    "greedy": _generation(),
    "defaults": _body(texts("text", OTHER)),
    "id": _body(texts("text", OTHER), id="seven", parameters=_FEW),
    "any name": _body(texts("input-0", OTHER), parameters=_FEW),
    "two": _body(_TWO, parameters=_FEW),
    "shape": _body(texts("text", "a", "b", "c", "d", shape=[2, 2]), parameters=_FEW),
    "nested": _body(
        {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [[PROMPT], [OTHER]]},
        parameters=_FEW,
    ),
    "outputs": _body(
        _TWO, parameters=_FEW, outputs=[{"name": "completion_tokens"}, {"name": "text"}]
    ),
    "no outputs are all": _body(_TWO, parameters=_FEW, outputs=[]),
    "unknown keys": _body(_TWO, parameters=_FEW, model_name="other", more=1),
    "content type": _body({**texts("text", OTHER), "parameters": {"content_type": "str"}}),
    "stop is a text": _generation(stop=" to", max_new_tokens=12),
    "stop is a list in a text": _generation(stop='["zzz", " to"]', max_new_tokens=12),
    "stop is a list": _generation(stop=["zzz", " to"], max_new_tokens=12),
    "fractions as texts": _generation(temperature="0.7", top_p="0.9", seed=5),
    "sampled": _generation(temperature=0.7, top_k=20, seed=5),
    "full text": _generation(return_full_text=True),
    "timeout": _generation(timeout="300"),
    "tensor for all": _body(_TWO, tensor("max_new_tokens", "INT32", 3)),
    "tensor for each": _body(_TWO, tensor("max_new_tokens", "INT64", 3, 5)),
    "tensors": _body(
        _TWO,
        tensor("temperature", "FP32", 0.7),
        tensor("seed", "UINT64", 5, 6),
        tensor("return_full_text", "BOOL", True),
        texts("stop", "zzz", " to"),
        parameters=_FEW,
    ),
    "penalties": _body(
        texts("text", LOOP, LOOP),
        tensor("repetition_penalty", "FP64", 1.5, 1),
        texts("presence_penalty", "0.5"),
        parameters=_FEW | {"frequency_penalty": "0.5"},
    ),
}

_BAD: dict[str, object] = {
    "empty object": {},
    "inputs is no list": {"inputs": {}},
    "no inputs": _body(),
    "input is a text": _body("a"),
    "no name": _body({"shape": [1], "datatype": "BYTES", "data": ["a"]}),
    "no shape": _body({"name": "text", "datatype": "BYTES", "data": ["a"]}),
    "no datatype": _body({"name": "text", "shape": [1], "data": ["a"]}),
    "no data": _body({"name": "text", "shape": [1], "datatype": "BYTES"}),
    "name is a number": _body({**texts("text", "a"), "name": 1}),
    "shape is a number": _body({**texts("text", "a"), "shape": 1}),
    "shape with a fraction": _body(texts("text", "a", shape=[1.0])),  # type: ignore[list-item]
    "shape below 0": _body(texts("text", "a", shape=[-2])),
    "shape with a boolean": _body(texts("text", "a", shape=[True])),
    "shape too deep": _body(texts("text", "a", shape=[1] * 33)),
    "shape too large": _body(texts("text", "a", shape=[2**63])),
    "shape of more": _body(texts("text", "a", shape=[2])),
    "shape of nothing": _body({**texts("text"), "shape": [0]}),
    "too many prompts": _body(texts("text", *["a"] * 257)),
    "too many by shape": _body(texts("text", "a", shape=[1000, 1000])),
    "nested otherwise": _body({**texts("text"), "shape": [2, 1], "data": [["a", "b"]]}),
    "nested too deeply": _body({**texts("text"), "shape": [1], "data": [["a"]]}),
    "unknown datatype": _body(tensor("text", "STRING", "a")),
    "prompt is INT32": _body(tensor("text", "INT32", 1)),
    "element is a number": _body(texts("text", "a", 3)),  # type: ignore[arg-type]
    "element is null": _body(tensor("text", "BYTES", None)),
    "two prompts": _body(texts("text", "a"), texts("more", "b")),
    "no prompt": _body(tensor("seed", "INT32", 1)),
    "name twice": _body(texts("text", "a"), texts("text", "b")),
    "unknown tensor": _body(texts("text", "a"), tensor("sed", "INT32", 1)),
    "unknown parameter": _generation(max_tokens=5),
    "wrong parameter": _generation(temperature="hot"),
    "parameter is a list": _generation(seed=[1]),
    "parameter twice": _body(_TWO, tensor("seed", "INT32", 1), parameters={"seed": 1}),
    "tensor of another count": _body(_TWO, tensor("seed", "INT32", 1, 2, 3)),
    "tensor of two for one": _body(texts("text", "a"), tensor("seed", "INT32", 1, 2)),
    "tensor out of range": _body(_TWO, tensor("seed", "INT8", 300)),
    "tensor of another kind": _body(_TWO, tensor("seed", "INT32", 1.5)),
    "tensor of floats for integers": _body(_TWO, tensor("top_k", "FP32", 2.0)),
    "tensor of booleans": _body(_TWO, tensor("seed", "BOOL", 1)),
    "tensor of halves": _body(_TWO, tensor("top_p", "FP16", 0.5)),
    "parameter of an input": _body({**texts("text", "a"), "parameters": {"seed": 1}}),
    "parameters is a list": _body(texts("text", "a"), parameters=[]),
    "id is a number": _body(texts("text", "a"), id=7),
    "unknown output": _body(texts("text", "a"), outputs=[{"name": "logits"}]),
    "output without a name": _body(texts("text", "a"), outputs=[{}]),
    "output twice": _body(texts("text", "a"), outputs=[{"name": "text"}, {"name": "text"}]),
    "outputs is null": _body(texts("text", "a"), outputs=None),
    "prompt too long": _body(texts("text", "word " * 200)),
}


def _of_each(server: str) -> dict[str, object]:
    fields = FIELDS[server]
    inputs = [texts(name, text) for name, text in fields.items()]
    first = inputs[0]
    return {
        "fields": _body(*inputs, id="seven"),
        "several": _body(*inputs[:-1], texts(inputs[-1]["name"], *inputs[-1]["data"] * 3)),
        "any name": _body(*inputs[:-1], texts("input-0", *inputs[-1]["data"])),
        "counts differ": _body(
            *(texts(name, *[text] * (2 + n)) for n, (name, text) in enumerate(fields.items())),
            texts("text_pair", "a", "b", "c"),
        ),
        "no element": _body(*({**one, "shape": [0], "data": []} for one in inputs)),
        "first alone": _body(first),
        "unknown input": _body(*inputs, texts("zzz", "a")),
        "twice": _body(*inputs, first),
        "INT32": _body({**first, "datatype": "INT32", "data": [1]}, *inputs[1:]),
        "unknown output": _body(*inputs, outputs=[{"name": "zzz"}]),
        "unknown parameter": _body(*inputs, parameters={"zzz": 1}),
        "timeout": _body(*inputs, parameters={"timeout": "300"}),
        "too many": _body(*(texts(one["name"], *["a"] * 2049) for one in inputs)),
    }


_TEXTS = texts("text", "I like it", "a")

_TASKS: dict[str, dict[str, object]] = {
    "t5": {
        "two": _body(texts("text", "a text", "b"), parameters=_FEW),
        "full text": _body(texts("text", "a text"), parameters={**_FEW, "return_full_text": True}),
    },
    "handler": {
        "seed": _body(texts("text", "a text"), parameters={"seed": 3}),
        "seeds": _body(texts("text", "a", "b"), tensor("seed", "INT32", 3, 4)),
    },
    "classifier": {
        "pair": _body(_TEXTS, texts("text_pair", "I do not")),
        "probabilities": _body(_TEXTS, outputs=[{"name": "probabilities"}, {"name": "label"}]),
        "by parameters": _body(
            _TEXTS, parameters={"return_probabilities": True, "return_raw_logits": True}
        ),
        "wrong parameter": _body(_TEXTS, parameters={"truncate": "true"}),
    },
    "tagger": {
        "none": _body(_TEXTS, parameters={"aggregation_strategy": "none"}),
        "score alone": _body(_TEXTS, outputs=[{"name": "score"}]),
    },
    "answerer": {
        "short": _body(
            texts("question", "Who?", "Where?"),
            texts("context", "It was Ada in London."),
            parameters={"max_answer_len": 4},
        )
    },
    "filler": {
        "two masks": _body(texts("text", "<mask> it", "I <mask> <mask>"), parameters={"top_k": 2})
    },
    "embedder": {"few": _body(_TEXTS, parameters={"dimensions": 8, "normalize": False})},
    "reranker": {
        "raw": _body(
            texts("query", "Who?"), texts("text", "a", "b"), parameters={"raw_scores": True}
        )
    },
}


def _rest(server: str, name: str, body: object) -> Rest:
    return Rest(server, f"v2/{name}", f"/v2/models/{server}/infer", body)


REQUESTS = [
    *(_rest("demo", name, body) for name, body in {**_GOOD, **_BAD}.items()),
    *(_rest(server, name, body) for server in FIELDS for name, body in _of_each(server).items()),
    *(_rest(server, n, body) for server, bodies in _TASKS.items() for n, body in bodies.items()),
]
