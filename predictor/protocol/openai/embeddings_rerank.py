"""HTTP endpoints for vectors and rankings of lists, in OpenAI's forms and TEI's.

The sources are OpenAI's API reference (``/v1/embeddings``), Cohere's as vLLM and KServe have it
(``/v1/rerank``), and Text Embeddings Inference's OpenAPI document (``/embed``, ``/rerank``,
``/predict``).
"""

from __future__ import annotations

import base64
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from predictor.errors import RequestError
from predictor.protocol.http.codec import Codec, CodecThreads
from predictor.protocol.http.deadline import (
    CountedRequest,
    counted,
    requested_timeout,
    while_connected,
)
from predictor.protocol.http.json_body import (
    JSONAnswer,
    JSONBody,
    check_count,
    check_keys,
    dump_json,
    optional,
    require_type,
)
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_document
from predictor.protocol.openai.keys import IgnoredKeys, Refusal, split_keys
from predictor.protocol.openai.request import model_name
from predictor.protocol.served import Models, ServedModel, find_in_body, require_task
from predictor.tasks.answers import Answer, Classes, Score, Vector, json_size, of_type
from predictor.tasks.request import MAX_INSTANCES, MAX_TEXTS, TOKENS, TaskRequest
from predictor.tasks.task import RawInstance

_EMBEDDING_PARAMETERS = (
    *("dimensions", "normalize", "prompt_name", "truncate"),
    "truncate_prompt_tokens",
)
_EMBEDDINGS = ("model", "input", "encoding_format", *_EMBEDDING_PARAMETERS)
_RERANK_PARAMETERS = ("truncate", "truncate_prompt_tokens")
_RERANK = ("model", "query", "documents", "top_n", "return_documents", *_RERANK_PARAMETERS)
_LIST_REFUSED: Mapping[str, Refusal] = {
    "messages": Refusal("'input' takes texts and lists of tokens"),
    "add_special_tokens": Refusal("a model is given the tokens that it was made for", (True,)),
    "embed_dtype": Refusal("vectors are float32", ("float32",)),
    "endianness": Refusal("vectors are little-endian", ("native", "little")),
}
_LIST_IGNORED = ("user", "priority", "request_id", "metadata", "cache_salt")
_EMBED = ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions")
_TEI_RERANK = (
    *("query", "texts", "raw_scores", "return_text", "truncate"),
    "truncation_direction",
)
_PREDICT = ("inputs", "raw_scores", "truncate", "truncation_direction")


@dataclass(frozen=True, slots=True)
class EmbeddingsRerankEndpoints:
    """The endpoints and the models that answer.

    Attributes:
        models: The models that are served.
        codec: Encodes vectors.
        ignored: Logs the keys that are not followed.
    """

    models: Models
    codec: Codec = field(default_factory=CodecThreads)
    ignored: IgnoredKeys = field(default_factory=IgnoredKeys)

    async def embeddings(self, request: Request) -> Response:
        """``POST {prefix}/v1/embeddings``: a vector for each text or list of tokens."""
        with self._counting("openai") as counting:
            document, size = await read_document(request)
            model = find_in_body(self.models, model_name(document))
            counting.model_name = model.name
            spec = await require_task(model, "text_embedding")
            given = self._followed(document, _EMBEDDINGS)
            form = given.get("encoding_format", "float")
            if form not in ("float", "base64"):
                raise RequestError("encoding_format must be 'float' or 'base64'.")
            shared = {name: given.get(name) for name in _EMBEDDING_PARAMETERS}
            items = given.get("input")
            typed = await off_loop(
                size, lambda: spec.request(shared, [_embedded(item) for item in _inputs(items)])
            )
            vectors = of_type(await _answers(request, model, typed), Vector)
            size = json_size(vectors)
            return JSONBody(
                await self.codec.run(size, _embeddings_body, vectors, form == "base64", model.name)
            )

    async def rerank(self, request: Request) -> Response:
        """``POST {prefix}/v1/rerank``: the documents, best first."""
        with self._counting("openai") as counting:
            document, size = await read_document(request)
            model = find_in_body(self.models, model_name(document))
            counting.model_name = model.name
            spec = await require_task(model, "rerank")
            given = self._followed(document, _RERANK)
            texts = [_document_text(item) for item in _list(given, "documents")]
            top = optional(given, "top_n", int, "top_n")
            if top is not None and top < 1:
                raise RequestError("top_n must be at least 1.")
            query = require_type(given.get("query"), str, "query")
            shared = {name: given.get(name) for name in _RERANK_PARAMETERS}
            typed = await off_loop(size, lambda: spec.request(shared, _pairs(query, texts)))
            answers = await _answers(request, model, typed)
        with_text = optional(given, "return_documents", bool, "return_documents")
        results = [
            {"index": index, "relevance_score": score}
            | ({"document": {"text": texts[index]}} if with_text else {})
            for index, score in _best_first(answers)[:top]
        ]
        answer = {"object": "list", "model": model.name, "results": results}
        return JSONBody(await off_loop(size if with_text else 0, lambda: dump_json(answer)))

    async def embed(self, request: Request) -> Response:
        """``POST /embed``: TEI's vectors, a list for each text."""
        with self._counting("tei"):
            document, size = await read_document(request)
            model = self._only()
            spec = await require_task(model, "text_embedding")
            _check_tei(document, _EMBED)
            names = ("normalize", "truncate", "prompt_name", "dimensions")
            shared = {name: document.get(name) for name in names}
            typed = await off_loop(size, lambda: spec.request(shared, _tei_texts(document)))
            vectors = of_type(await _answers(request, model, typed), Vector)
            return JSONBody(await self.codec.run(json_size(vectors), _embed_body, vectors))

    async def tei_rerank(self, request: Request) -> Response:
        """``POST /rerank``: TEI's ranking, best first."""
        with self._counting("tei"):
            document, size = await read_document(request)
            model = self._only()
            spec = await require_task(model, "rerank")
            _check_tei(document, _TEI_RERANK)
            query = require_type(document.get("query"), str, "query")
            texts = [require_type(text, str, "texts") for text in _list(document, "texts")]
            shared = {name: document.get(name) for name in ("raw_scores", "truncate")}
            typed = await off_loop(size, lambda: spec.request(shared, _pairs(query, texts)))
            answers = await _answers(request, model, typed)
        with_text = optional(document, "return_text", bool, "return_text")
        ranking = [
            {"index": index, "score": score} | ({"text": texts[index]} if with_text else {})
            for index, score in _best_first(answers)
        ]
        return JSONBody(await off_loop(size if with_text else 0, lambda: dump_json(ranking)))

    async def predict(self, request: Request) -> Response:
        """``POST /predict``: TEI's classification, all labels of a text, best first."""
        with self._counting("tei"):
            document, size = await read_document(request)
            model = self._only()
            spec = await require_task(model, "sequence_classification")
            _check_tei(document, _PREDICT)
            raw = optional(document, "raw_scores", bool, "raw_scores") or False
            name = "return_raw_logits" if raw else "return_probabilities"
            shared = {name: True, "truncate": document.get("truncate")}
            typed = await off_loop(size, lambda: spec.request(shared, _tei_texts(document)))
            answers = await _answers(request, model, typed)
        rows = [_by_score(answer, raw=raw) for answer in of_type(answers, Classes)]
        return JSONAnswer(rows if isinstance(document["inputs"], list) else rows[0])

    def _followed(self, document: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
        given, ignored = split_keys(document, keys, refused=_LIST_REFUSED, ignored=_LIST_IGNORED)
        self.ignored.log(ignored)
        return given

    def _only(self) -> ServedModel:
        """Return the one model, which TEI's clients do not name."""
        return next(iter(self.models.get_models().values()))

    @contextmanager
    def _counting(self, protocol: str) -> Iterator[CountedRequest]:
        # The body may name a model, and may be no JSON at all; until it is read, it is the base.
        with counted(next(iter(self.models.get_models()), ""), protocol) as counting:
            yield counting


def _embeddings_body(vectors: Sequence[Vector], is_base64: bool, model: str) -> bytes:
    as_json = _base64 if is_base64 else array.tolist
    data = [
        {"object": "embedding", "index": index, "embedding": as_json(vector.values)}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(vector.tokens for vector in vectors)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return dump_json({"object": "list", "data": data, "model": model, "usage": usage})


def _embed_body(vectors: Sequence[Vector]) -> bytes:
    return dump_json([vector.values.tolist() for vector in vectors])


async def _answers(request: Request, model: ServedModel, typed: TaskRequest) -> tuple[Answer, ...]:
    return await while_connected(request, model.answer(typed, requested_timeout(request.headers)))


def _inputs(given: object) -> list[str | list[object]]:
    """Return the items to embed of a text, texts, a list of tokens or lists of tokens."""
    if isinstance(given, str):
        return [given]
    items = require_type(given, list, "input")
    if not items:
        raise RequestError("input is empty; give at least one text.")
    if set(map(type, items)) <= {int}:
        return [items]
    check_count(len(items), MAX_TEXTS)
    return [item if isinstance(item, str) else require_type(item, list, "input") for item in items]


def _embedded(item: str | list[object]) -> RawInstance:
    if isinstance(item, str):
        return RawInstance({"text": item})
    return RawInstance({"text": ""}, {TOKENS: item})


def _pairs(query: str, texts: Iterable[str]) -> Iterator[RawInstance]:
    return (RawInstance({"query": query, "text": text}) for text in texts)


def _tei_texts(document: Mapping[str, object]) -> Iterator[RawInstance]:
    """Return TEI's ``inputs``, a text or a list of them, as instances."""
    given = document.get("inputs")
    items = [given] if isinstance(given, str) else _list(document, "inputs", MAX_TEXTS)
    return (RawInstance({"text": require_type(text, str, "inputs")}) for text in items)


def _list(document: Mapping[str, object], key: str, most: int = MAX_INSTANCES) -> list[object]:
    items: list[object] = require_type(document.get(key), list, key)
    if not items:
        raise RequestError(f"{key} is empty; give at least one text.")
    check_count(len(items), most)
    return items


def _document_text(item: object) -> str:
    """Return the text of a document, which is a text or an object with one."""
    text = item.get("text") if isinstance(item, dict) else item
    return require_type(text, str, "documents")


def _check_tei(document: Mapping[str, object], keys: Sequence[str]) -> None:
    check_keys(document, keys, "the body")
    if str(document.get("truncation_direction", "right")).lower() != "right":
        raise RequestError("truncation_direction must be 'right'.")


def _best_first(answers: Sequence[Answer]) -> list[tuple[int, float]]:
    scores = (answer.score for answer in of_type(answers, Score))
    return sorted(enumerate(scores), key=lambda pair: -pair[1])


def _by_score(answer: Classes, *, raw: bool) -> list[dict[str, object]]:
    values = answer.logits if raw else answer.probabilities
    by_label = dict(zip(answer.labels, values or (), strict=True))
    ordered = sorted(by_label.items(), key=lambda pair: -pair[1])
    return [{"score": score, "label": label} for label, score in ordered]


def _base64(vector: array[float]) -> str:
    """Return a vector as base64 of little-endian float32, for OpenAI's client."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
