"""A response as a JSON object: its items, its status and what it has used.

The source is OpenAI's API reference as its Python client has it
(``openai.types.responses.response``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from predictor.engine.generation.sampling_params import FinishReason
from predictor.protocol.openai.logprobs import bounded, token_bytes
from predictor.protocol.openai.reply_items import Item, Kind, items_of
from predictor.protocol.openai.responses.request import ResponseCall
from predictor.tasks.answers import Completion, Piece, ScoredToken

Status = Literal["in_progress", "completed", "incomplete", "failed"]

_PREFIXES: Mapping[Kind, str] = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """The keys of a response that do not change while it is streamed.

    Attributes:
        id: Its id.
        created: Unix time of its beginning.
        model: The model that answers.
        echo: Keys of the request that it repeats.
    """

    id: str
    created: int
    model: str
    echo: Mapping[str, object]

    @classmethod
    def new(cls, call: ResponseCall, model: str) -> Envelope:
        """Return an envelope with a new id."""
        return cls(f"resp_{uuid.uuid4().hex}", int(time.time()), model, call.echo)

    def document(
        self,
        status: Status,
        output: Sequence[object] = (),
        *,
        usage: object = None,
        error: object = None,
    ) -> dict[str, object]:
        """Return the response."""
        is_cut = status == "incomplete"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self.model,
            "output": list(output),
            "previous_response_id": None,
            **self.echo,
            "usage": usage,
        }


def encode(call: ResponseCall, model: str, completion: Completion) -> dict[str, object]:
    """Return the response for a whole reply.

    Args:
        call: The request.
        model: The model that answers.
        completion: The reply.
    """
    status, items = status_of(completion.ending), items_of(completion)
    output = [
        item_document(item, new_id(item.kind), status if item is items[-1] else "completed")
        for item in items
    ]
    return Envelope.new(call, model).document(status, output, usage=usage_of(completion))


def status_of(ending: FinishReason) -> Status:
    """Return the status of a response whose reply has ended."""
    return "incomplete" if ending == "length" else "completed"


def new_id(kind: Kind) -> str:
    """Return a new id for an item."""
    return _PREFIXES[kind] + uuid.uuid4().hex


def item_document(item: Item, identity: str, status: Status) -> dict[str, object]:
    """Return an item of a response.

    Args:
        item: The item.
        identity: Its id.
        status: Whether it is complete.
    """
    if item.kind == "call":
        return {
            "id": identity,
            "type": "function_call",
            "call_id": item.call_id,
            "name": item.function,
            "arguments": item.text,
            "status": status,
        }
    content = [part_document(item)] if status != "in_progress" else []
    if item.kind == "reasoning":
        return {
            "id": identity,
            "type": "reasoning",
            "summary": [],
            "content": content,
            "encrypted_content": None,
            "status": status,
        }
    return {
        "id": identity,
        "type": "message",
        "role": "assistant",
        "content": content,
        "status": status,
    }


def part_document(item: Item) -> dict[str, object]:
    """Return the only part of a message, or of reasoning."""
    if item.kind == "reasoning":
        return {"type": "reasoning_text", "text": item.text}
    return {
        "type": "output_text",
        "text": item.text,
        "annotations": [],
        "logprobs": [_logprob(token) for token in item.tokens],
    }


def delta_logprobs(tokens: Sequence[ScoredToken]) -> list[dict[str, object]]:
    """Return the log probabilities of tokens as the events of a stream have them."""
    return [
        {
            "token": token.text,
            "logprob": bounded(token.logprob),
            "top_logprobs": [
                {"token": text, "logprob": bounded(logprob)} for text, logprob in token.top
            ],
        }
        for token in tokens
    ]


def usage_of(reply: Completion | Piece) -> dict[str, object]:
    """Return the tokens of a request and of its reply."""
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": reply.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }


def _logprob(token: ScoredToken) -> dict[str, object]:
    top = [_scored(text, logprob) for text, logprob in token.top]
    return {**_scored(token.text, token.logprob), "top_logprobs": top}


def _scored(text: str, logprob: float) -> dict[str, object]:
    return {"token": text, "logprob": bounded(logprob), "bytes": token_bytes(text) or []}
