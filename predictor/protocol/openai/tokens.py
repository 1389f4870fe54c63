"""HTTP endpoints for tokens, in vLLM's forms: ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from predictor.errors import RequestError
from predictor.protocol.http.json_body import (
    JSONBody,
    check_nesting,
    dump_json,
    optional,
    parse_document,
    require_type,
)
from predictor.protocol.http.off_loop import off_loop
from predictor.protocol.http.requests import read_body
from predictor.protocol.openai import tools
from predictor.protocol.openai.chat import conversation_of
from predictor.protocol.openai.keys import REFUSED, IgnoredKeys, Refusal, split_keys
from predictor.protocol.openai.nested_keys import nested_names
from predictor.protocol.served import Models, ServedModel, find_in_body, require_ready
from predictor.tasks.text_tokens import TextTokens

_TOKENIZE = (
    *("model", "prompt", "messages", "add_special_tokens", "return_token_strs"),
    *tools.KEYS,
)
_DETOKENIZE = ("model", "tokens")
_REFUSED: Mapping[str, Refusal] = {
    name: REFUSED[name]
    for name in (
        *("add_generation_prompt", "continue_final_message", "chat_template", "documents"),
        "mm_processor_kwargs",
    )
}


@dataclass(frozen=True, slots=True)
class TokenEndpoints:
    """The endpoints and the models whose tokenizers answer.

    Attributes:
        models: The models that are served.
        ignored: Logs the keys that are not followed.
    """

    models: Models
    ignored: IgnoredKeys = field(default_factory=IgnoredKeys)

    async def tokenize(self, request: Request) -> Response:
        """``POST /tokenize``: the token ids of a prompt, or of a conversation."""
        body = await read_body(request)
        given = await self._given(body, _TOKENIZE)
        tokens = (await self._model(given)).text_tokens()
        with tokens.admitted(len(body)):
            answer = await off_loop(len(body), lambda: dump_json(_tokenized(given, tokens)))
        if "messages" in given:
            self.ignored.log(nested_names(given))
        return JSONBody(answer)

    async def detokenize(self, request: Request) -> Response:
        """``POST /detokenize``: the text of token ids."""
        body = await read_body(request)
        given = await self._given(body, _DETOKENIZE)
        tokens = (await self._model(given)).text_tokens()
        ids = require_type(given.get("tokens"), list, "tokens")
        with tokens.admitted(len(body)):
            return JSONBody(await off_loop(len(body), lambda: dump_json(_text(ids, tokens))))

    async def _given(self, body: bytes, followed: tuple[str, ...]) -> dict[str, object]:
        document = await off_loop(len(body), lambda: _document(body))
        given, ignored = split_keys(document, followed, refused=_REFUSED, ignored=())
        self.ignored.log(ignored)
        return given

    async def _model(self, given: Mapping[str, object]) -> ServedModel:
        """Return the model of this name; without a name, the one that is served."""
        name = optional(given, "model", str, "model") or next(iter(self.models.get_models()), "")
        model = find_in_body(self.models, name)
        await require_ready(model)
        return model


def _document(body: bytes) -> dict[str, object]:
    document = parse_document(body)
    check_nesting(document)
    return document


def _tokenized(given: Mapping[str, object], tokens: TextTokens) -> dict[str, object]:
    ids = _ids(given, tokens)
    with_names = optional(given, "return_token_strs", bool, "return_token_strs")
    return {
        "count": len(ids),
        "max_model_len": tokens.max_model_len,
        "tokens": ids,
        "token_strs": tokens.names(ids) if with_names else None,
    }


def _ids(given: Mapping[str, object], tokens: TextTokens) -> list[int]:
    if ("prompt" in given) == ("messages" in given):
        raise RequestError("The body needs one of 'prompt' and 'messages'.")
    if "messages" in given:
        conversation, _ = conversation_of(given)
        return tokens.encode_chat(conversation)
    special = optional(given, "add_special_tokens", bool, "add_special_tokens")
    prompt = require_type(given["prompt"], str, "prompt")
    return tokens.encode(prompt, add_special_tokens=special is not False)


def _text(ids: list[object], tokens: TextTokens) -> dict[str, object]:
    return {"prompt": tokens.decode([require_type(token, int, "tokens") for token in ids])}
