"""OpenAI's embeddings, rerank, and the routes of Text Embeddings Inference."""

from __future__ import annotations

from typing import Any

from tests.recorded.forms import Rest

_TEXTS = ["I like it", "Ada did it"]


def _embeddings(**body: Any) -> dict[str, Any]:
    return {"model": "embedder", "input": _TEXTS, "dimensions": 8, **body}


def _rerank(**body: Any) -> dict[str, Any]:
    return {"model": "reranker", "query": "Who?", "documents": ["nobody", "Ada", "It"], **body}


def _tei_rerank(**body: Any) -> dict[str, Any]:
    return {"query": "Who?", "texts": ["nobody", "Ada", "It"], **body}


_BODIES: dict[tuple[str, str], dict[str, object]] = {
    ("embedder", "/openai/v1/embeddings"): {
        "texts": _embeddings(),
        "a text": _embeddings(input="I like it"),
        "all dimensions": _embeddings(dimensions=64),
        "null dimensions": _embeddings(dimensions=None, input="a"),
        "tokens": _embeddings(input=[5, 6, 7]),
        "lists of tokens": _embeddings(input=[[5, 6], [7]]),
        "base64": _embeddings(encoding_format="base64"),
        "user": _embeddings(user="a", encoding_format="float"),
        "unknown format": _embeddings(encoding_format="int8"),
        "unknown key": _embeddings(truncate=True),
        "wrong dimensions": _embeddings(dimensions=7),
        "dimensions is a text": _embeddings(dimensions="8"),
        "no input": {"model": "embedder"},
        "empty input": _embeddings(input=[]),
        "input is a number": _embeddings(input=5),
        "input of an object": _embeddings(input=[{}]),
        "no tokens": _embeddings(input=[[]]),
        "unknown token": _embeddings(input=[999]),
        "token is a text": _embeddings(input=[[5, "a"]]),
        "too many tokens": _embeddings(input=[5] * 129),
        "too many": _embeddings(input=["a"] * 2049),
        "too long": _embeddings(input="a" * 300),
        "no model": {"input": "a"},
        "unknown model": _embeddings(model="other"),
    },
    ("embedder", "/embed"): {
        "texts": {"inputs": _TEXTS, "dimensions": 8},
        "a text": {"inputs": "I like it"},
        "not normalised": {"inputs": "I like it", "normalize": False, "dimensions": 8},
        "prompt": {"inputs": "I like it", "prompt_name": "query", "dimensions": 8},
        "truncate": {"inputs": "a" * 300, "truncate": True, "dimensions": 8},
        "right": {"inputs": "a", "truncation_direction": "Right", "dimensions": 8},
        "left": {"inputs": "a", "truncation_direction": "left"},
        "too long": {"inputs": "a" * 300},
        "no inputs": {},
        "empty inputs": {"inputs": []},
        "number": {"inputs": ["a", 5]},
        "unknown key": {"inputs": "a", "model": "embedder"},
        "wrong normalize": {"inputs": "a", "normalize": "yes"},
        "malformed": b"{inputs}",
    },
    ("reranker", "/openai/v1/rerank"): {
        "documents": _rerank(),
        "top_n": _rerank(top_n=2, return_documents=True),
        "top_n of more": _rerank(top_n=9),
        "objects": _rerank(documents=[{"text": "Ada"}, "It"]),
        "top_n is 0": _rerank(top_n=0),
        "top_n is a text": _rerank(top_n="2"),
        "return_documents is a text": _rerank(return_documents="yes"),
        "no query": {"model": "reranker", "documents": ["a"]},
        "no documents": {"model": "reranker", "query": "a"},
        "empty documents": _rerank(documents=[]),
        "object without a text": _rerank(documents=[{"title": "a"}]),
        "too many": _rerank(documents=["a"] * 257),
        "too long": _rerank(query="a" * 300),
        "unknown key": _rerank(max_chunks=1),
        "no model": {"query": "a", "documents": ["a"]},
    },
    ("reranker", "/rerank"): {
        "texts": _tei_rerank(),
        "raw": _tei_rerank(raw_scores=True, return_text=True),
        "truncate": _tei_rerank(query="a" * 300, truncate=True),
        "too long": _tei_rerank(query="a" * 300),
        "no query": {"texts": ["a"]},
        "no texts": {"query": "a"},
        "text is a number": _tei_rerank(texts=[5]),
        "wrong raw": _tei_rerank(raw_scores=1),
        "wrong return_text": _tei_rerank(return_text=1),
        "left": _tei_rerank(truncation_direction="Left"),
        "unknown key": _tei_rerank(top_n=1),
    },
    ("classifier", "/predict"): {
        "text": {"inputs": "I like it"},
        "texts": {"inputs": _TEXTS},
        "raw": {"inputs": "I like it", "raw_scores": True},
        "truncate": {"inputs": "a" * 300, "truncate": True},
        "pair": {"inputs": [["a", "b"]]},
        "no inputs": {},
        "empty inputs": {"inputs": []},
        "wrong raw": {"inputs": "a", "raw_scores": "yes"},
        "unknown key": {"inputs": "a", "return_all": True},
        "too long": {"inputs": "a" * 300},
    },
}

_OTHERS: dict[str, object] = {
    "/openai/v1/embeddings": {"model": "demo", "input": "a"},
    "/openai/v1/rerank": {"model": "demo", "query": "a", "documents": ["a"]},
    "/embed": {"inputs": "a"},
    "/rerank": _tei_rerank(),
    "/predict": {"inputs": "a"},
}
"""Sent to a model that generates."""

_LATE = {"x-request-timeout": "0.000001"}


def _name(path: str) -> str:
    return path.removeprefix("/").replace("openai/v1", "openai") if "v1" in path else f"tei{path}"


REQUESTS = [
    *(
        Rest(server, f"{_name(path)}/{name}", path, body)
        for (server, path), bodies in _BODIES.items()
        for name, body in bodies.items()
    ),
    *(Rest("demo", f"{_name(path)}/of another task", path, body) for path, body in _OTHERS.items()),
    Rest("reranker", "tei/embed/of another task", "/embed", {"inputs": "a"}),
    Rest("embedder", "tei/predict/of another task", "/predict", {"inputs": "a"}),
    Rest(
        "embedder", "openai/embeddings/late", "/openai/v1/embeddings", _embeddings(), headers=_LATE
    ),
    Rest("reranker", "tei/rerank/late", "/rerank", _tei_rerank(), headers=_LATE),
    Rest("embedder", "tei/embed/GET", "/embed", method="GET"),
]
